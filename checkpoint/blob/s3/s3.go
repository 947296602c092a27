package s3

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	gocloud "gocloud.dev/blob"
	"gocloud.dev/blob/s3blob"

	"github.com/weirstream/weir/checkpoint/blob"
)

func init() { blob.Register(driver) }

var driver = blob.Driver{
	Scheme:      s3blob.Scheme,
	Open:        open,
	Upload:      true,
	Classify:    classify,
	Credentials: "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, ~/.aws, or the role of the machine or pod; none is of use while the clock of the machine is wrong by a quarter of an hour",
	Shown:       []string{"region", "endpoint", "profile", "use_path_style"},
}

// shortWait is the longest wait between attempts of the SDK. It tries a request, or a
// part of an upload, a few times at once; package blob waits longer.
const shortWait = 500 * time.Millisecond

func open(ctx context.Context, u *url.URL) (*gocloud.Bucket, error) {
	var opener s3blob.URLOpener
	bucket, err := opener.OpenBucketURL(ctx, u)
	if err != nil {
		return nil, err
	}
	var parsed *s3.Client
	if !bucket.As(&parsed) {
		return nil, errors.New("the driver has no S3 client")
	}
	client := s3.New(parsed.Options(), func(o *s3.Options) {
		o.Retryer = retry.AddWithMaxBackoffDelay(o.Retryer, shortWait)
		o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
			return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("weirAbort", abort), middleware.Before)
		})
		// Objects that were sent in parts have no sum of the whole, which the SDK
		// would log at each Get.
		o.DisableLogOutputChecksumValidationSkipped = true
	})
	return s3blob.OpenBucket(ctx, client, u.Host, &opener.Options)
}

// abortTime is how long it may take to remove the parts of an upload whose time is over.
const abortTime = 5 * time.Second

// abort gives the removal of parts a context of its own: the uploader uses that of the
// upload, and a checkpoint that took too long would leave its parts.
func abort(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
	if _, ok := in.Parameters.(*s3.AbortMultipartUploadInput); ok && ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), abortTime)
		defer cancel()
	}
	return next.HandleInitialize(ctx, in)
}

// afterAbort stands in the text, and nothing else, of an upload in parts that failed
// and whose parts could not be removed; what follows is why it failed.
const afterAbort = "triggered after multipart upload failed: "

// noCredentials stands in an error of who gives out credentials: a role's or a pod's
// endpoint, a token service, a file.
const noCredentials = "get credentials: "

func classify(err error) blob.Kind {
	text := err.Error()
	if _, why, ok := strings.Cut(text, afterAbort); ok {
		switch {
		case strings.Contains(why, "PreconditionFailed"):
			return blob.Exists
		case strings.Contains(why, "StatusCode: 4"):
			return blob.Refused
		}
		return blob.Transient
	}
	var response interface{ HTTPStatusCode() int }
	answered := errors.As(err, &response) && response.HTTPStatusCode() >= 400
	if strings.Contains(text, noCredentials) || strings.Contains(text, "failed to refresh cached credentials") {
		// The service was not asked: what was not found is no object.
		if answered && blob.StatusKind(response.HTTPStatusCode()) == blob.Transient {
			return blob.Transient
		}
		return blob.Denied
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		switch api.ErrorCode() {
		case "NoSuchKey", "NotFound":
			return blob.NotFound
		case "NoSuchBucket", "PermanentRedirect", "MovedPermanently", "AuthorizationHeaderMalformed":
			return blob.NoBucket
		case "PreconditionFailed":
			return blob.Exists
		case "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken":
			return blob.Denied
		case "NotImplemented":
			return blob.Unsupported
		case "ConditionalRequestConflict", "OperationAborted", // another put of the object is about to end
			"NoSuchUpload", // it ended, or its parts are gone; another attempt finds out
			"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable":
			return blob.Transient
		case "ObjectNotInActiveTierError", "InvalidObjectState":
			return blob.Refused // archived is not missing
		}
	}
	switch {
	case answered:
		return blob.StatusKind(response.HTTPStatusCode())
	case strings.Contains(text, "checksum did not match"):
		return blob.Transient // it was damaged on the way; if not, it fails again
	}
	return blob.Unclassified
}
