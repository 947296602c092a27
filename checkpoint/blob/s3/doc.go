// Package s3 keeps checkpoints in Amazon S3 or a service that speaks its protocol.
// Import it for its side effect: it registers the scheme s3.
//
//	s3://bucket/prefix?region=eu-central-1
//	s3://bucket/prefix?endpoint=http://minio:9000&use_path_style=true&region=us-east-1
//
// The query takes the parameters of [gocloud.dev/blob/s3blob.URLOpener] and
// [gocloud.dev/aws.V2ConfigFromURLParams], and those of package blob. Credentials
// come from where the AWS SDK looks for them: the environment, shared files, the
// role of the machine or pod.
//
// Objects are put with If-None-Match, large ones in parts that become visible
// together. The SDK adds CRC32 sums to what it sends and checks those it gets.
package s3
