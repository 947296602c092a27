package gcs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"cloud.google.com/go/storage"
	gocloud "gocloud.dev/blob"
	"gocloud.dev/blob/gcsblob"
	"gocloud.dev/gcp"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"

	"github.com/weirstream/weir/checkpoint/blob"
)

func init() { blob.Register(driver) }

const credentials = "credentials come from the file that GOOGLE_APPLICATION_CREDENTIALS names, from gcloud auth application-default login, or from the service account of the machine or pod"

var driver = blob.Driver{
	Scheme:      gcsblob.Scheme,
	Open:        open,
	Classify:    classify,
	Credentials: credentials,
	Shown:       []string{"anonymous", "grpc", "universe_domain"},
}

// attempts of the SDK at a request. Unless it is told, it goes on until the context
// is done.
const attempts = 3

func open(ctx context.Context, u *url.URL) (*gocloud.Bucket, error) {
	q := u.Query()
	if q.Has("zonal") {
		return nil, errors.New("parameter zonal is not supported: objects of a zonal bucket are visible before they are complete")
	}
	opener := &gcsblob.URLOpener{}
	switch anonymous, _ := strconv.ParseBool(q.Get("anonymous")); {
	case anonymous, q.Get("access_id") == "-":
		// The opener makes a client.
	case os.Getenv("STORAGE_EMULATOR_HOST") != "":
		opener.Client = gcp.NewAnonymousHTTPClient(gcp.DefaultTransport())
	default:
		// The opener that gocloud.dev registers prints a warning and goes on if
		// there are no credentials.
		domain := q.Get("universe_domain")
		who := &endpoint{base: transport(pingAfter)}
		// The source of tokens keeps the client as long as it lives.
		ctx := context.WithValue(context.WithoutCancel(ctx), oauth2.HTTPClient, &http.Client{Transport: who, Timeout: tokenTime})
		found, err := gcp.DefaultCredentialsWithParams(ctx, google.CredentialsParams{UniverseDomain: domain})
		if err != nil {
			return nil, fmt.Errorf("find credentials: %w; %s", err, credentials)
		}
		opener.Client = &gcp.HTTPClient{Client: http.Client{Transport: &authorized{source: found.TokenSource, endpoint: who}}}
		opener.TokenSource = gcp.CredentialsTokenSource(found)
		if domain != "" {
			opener.Options.ClientOptions = []option.ClientOption{option.WithUniverseDomain(domain)}
		}
	}
	bucket, err := opener.OpenBucketURL(ctx, u)
	if err != nil {
		return nil, err
	}
	var client *storage.Client
	if bucket.As(&client) {
		client.SetRetry(storage.WithMaxAttempts(attempts))
	}
	return bucket, nil
}

func classify(err error) blob.Kind {
	var (
		api   *googleapi.Error
		token *tokenError
	)
	switch {
	case errors.As(err, &token):
		// The service was not asked: what was not found is no object.
		if blob.StatusKind(token.status) == blob.Transient {
			return blob.Transient
		}
		return blob.Denied
	case errors.Is(err, storage.ErrBucketNotExist), strings.Contains(err.Error(), "bucket does not exist"):
		return blob.NoBucket
	case errors.As(err, &api):
		for _, item := range api.Errors {
			switch item.Reason {
			case "retentionPolicyNotMet", "objectUnderActiveHold":
				return blob.Kept
			case "rateLimitExceeded", "userRateLimitExceeded":
				return blob.Transient
			}
		}
		switch api.Code {
		case http.StatusConflict, // with another request for the object
			http.StatusGone: // the session of an upload; another attempt begins a new one
			return blob.Transient
		}
		return blob.StatusKind(api.Code)
	case errors.Is(err, storage.ErrObjectNotExist):
		return blob.NotFound
	case storage.ShouldRetry(err):
		return blob.Transient
	}
	return blob.Unclassified
}
