package azure

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	azblobblob "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	gocloud "gocloud.dev/blob"
	"gocloud.dev/blob/azureblob"

	"github.com/weirstream/weir/checkpoint/blob"
)

func init() { blob.Register(driver) }

var driver = blob.Driver{
	Scheme:      azureblob.Scheme,
	Open:        open,
	Upload:      true, // the Writer of azureblob v0.47 panics when a request fails
	BeforeWrite: checksum,
	BeforeList:  withMetadata,
	Directory:   directory,
	Classify:    classify,
	Credentials: "credentials come from AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, from AZURE_STORAGE_CONNECTION_STRING, or from the identity of the machine or pod; the account may also be given as storage_account in the URL; a key is of no use while the clock of the machine is wrong by a quarter of an hour",
	Shown:       []string{"storage_account", "domain", "protocol", "localemu", "cdn"},
}

func open(ctx context.Context, u *url.URL) (*gocloud.Bucket, error) {
	options := azureblob.NewDefaultServiceURLOptions()
	if options.SASToken != "" {
		// The token goes where the environment says, and nowhere else.
		for _, p := range []string{"domain", "protocol", "storage_account", "localemu", "cdn"} {
			if u.Query().Has(p) {
				return nil, errors.New("parameter " + p + " is not used together with AZURE_STORAGE_SAS_TOKEN: set AZURE_STORAGE_ACCOUNT, AZURE_STORAGE_DOMAIN or their like instead")
			}
		}
	}
	if options.AccountName == "" && !u.Query().Has("storage_account") {
		return nil, errors.New("no storage account is named: set AZURE_STORAGE_ACCOUNT, or add storage_account to the URL")
	}
	opener := &azureblob.URLOpener{MakeClient: azureblob.NewDefaultClient, ServiceURLOptions: *options}
	if key := os.Getenv("AZURE_STORAGE_KEY"); key != "" && options.AccountName == "" && options.SASToken == "" {
		// azureblob takes no notice of a key without AZURE_STORAGE_ACCOUNT.
		opener.MakeClient = withKey(u.Query().Get("storage_account"), key)
	}
	return opener.OpenBucketURL(ctx, u)
}

func withKey(account, key string) func(azureblob.ServiceURL, azureblob.ContainerName) (*container.Client, error) {
	return func(service azureblob.ServiceURL, name azureblob.ContainerName) (*container.Client, error) {
		c, err := azblob.NewSharedKeyCredential(account, key)
		if err != nil {
			return nil, fmt.Errorf("use AZURE_STORAGE_KEY: %w", err)
		}
		at, err := url.JoinPath(string(service), string(name))
		if err != nil {
			return nil, err
		}
		return container.NewClientWithSharedKeyCredential(at, c, nil)
	}
}

// checksum has the service check each block. The SDK heeds it only for objects of
// several blocks.
func checksum(as func(any) bool) error {
	var o *azblob.UploadStreamOptions
	if !as(&o) {
		return errors.New("the driver takes no upload options")
	}
	o.TransactionalValidation = azblobblob.TransferValidationTypeComputeCRC64()
	return nil
}

func withMetadata(as func(any) bool) error {
	var o *container.ListBlobsHierarchyOptions
	if !as(&o) {
		return errors.New("the driver takes no list options")
	}
	o.Include.Metadata = true
	return nil
}

// directory tells of an account with a hierarchical namespace what is a directory there:
// those are listed among the objects, and stay when the objects are gone.
func directory(as func(any) bool) bool {
	var item container.BlobItem
	if !as(&item) {
		return false
	}
	for k, v := range item.Metadata {
		if strings.EqualFold(k, "hdi_isfolder") && v != nil && *v == "true" {
			return true
		}
	}
	return false
}

// noAnswer is what stands in the text of an error, and nothing else of it, if who gives out
// tokens was not reached.
var noAnswer = regexp.MustCompile(`dial tcp|no such host|connection re(fused|set)|timeout|deadline exceeded|EOF`)

func classify(err error) blob.Kind {
	var (
		response *azcore.ResponseError
		identity *azidentity.AuthenticationFailedError
		dns      *net.DNSError
	)
	switch {
	case errors.As(err, &identity):
		// The service was not asked: what was not found is no object.
		switch r := identity.RawResponse; {
		case r != nil && blob.StatusKind(r.StatusCode) == blob.Transient:
			return blob.Transient
		case r == nil && noAnswer.MatchString(err.Error()):
			return blob.Unreachable
		}
		return blob.Denied
	case errors.As(err, &response):
		switch response.ErrorCode {
		case "ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled":
			return blob.NoBucket
		case "BlobNotFound":
			return blob.NotFound
		case "BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet":
			return blob.Exists
		case "BlobImmutableDueToPolicy", "BlobImmutableDueToLegalHold", "LeaseIdMissing", "SnapshotsPresent":
			return blob.Kept
		case "InvalidBlockList":
			return blob.Transient // another put of the object ended and took the blocks
		}
		return blob.StatusKind(response.StatusCode)
	case errors.As(err, &dns) && dns.IsNotFound:
		return blob.NoBucket // the account is a part of the host name
	case strings.Contains(err.Error(), "failed to acquire a token"):
		return blob.Denied
	}
	return blob.Unclassified
}
