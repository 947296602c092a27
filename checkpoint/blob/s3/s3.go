package s3

import (
	"context"
	"errors"
	"net/url"
	"strings"

	"github.com/aws/smithy-go"
	gocloud "gocloud.dev/blob"
	"gocloud.dev/blob/s3blob"

	"github.com/weirstream/weir/checkpoint/blob"
)

func init() { blob.Register(driver) }

var driver = blob.Driver{
	Scheme:      s3blob.Scheme,
	Open:        open,
	Classify:    classify,
	Credentials: "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, ~/.aws, or the role of the machine or pod",
	Shown:       []string{"region", "endpoint", "profile", "use_path_style"},
}

func open(ctx context.Context, u *url.URL) (*gocloud.Bucket, error) {
	return new(s3blob.URLOpener).OpenBucketURL(ctx, u)
}

// afterAbort stands in the text, and nothing else, of an upload in parts that failed
// and whose parts could not be removed; what follows is why it failed.
const afterAbort = "triggered after multipart upload failed: "

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
	var response interface{ HTTPStatusCode() int }
	if errors.As(err, &response) && response.HTTPStatusCode() >= 400 {
		return blob.StatusKind(response.HTTPStatusCode())
	}
	switch {
	case strings.Contains(text, "get credentials"), strings.Contains(text, "failed to refresh cached credentials"):
		return blob.Denied
	case strings.Contains(text, "checksum did not match"):
		return blob.Transient // it was damaged on the way; if not, it fails again
	}
	return blob.Unclassified
}
