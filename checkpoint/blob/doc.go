// Package blob keeps checkpoints in an object store: any bucket of gocloud.dev/blob.
//
// It owns how the contract of [checkpoint.Store] is kept over a network: that an
// object is never overwritten, that an outcome which got lost on the way is found
// out, what is tried again and for how long, and what an operator is told. It does
// not know any service. A service is a [Driver]; each has a package of its own, so
// that a program links no cloud SDK that it does not use:
//
//	import _ "github.com/weirstream/weir/checkpoint/blob/s3"    // s3://
//	import _ "github.com/weirstream/weir/checkpoint/blob/gcs"   // gs://
//	import _ "github.com/weirstream/weir/checkpoint/blob/azure" // azblob://
//
// The order in which it is used:
//
//  1. A driver package calls [Register] in its init function.
//  2. [checkpoint.OpenStore] gives a URL of the driver's scheme to [Open], which
//     makes the [Store]. Nothing is sent yet; [checkpoint.Probe] does that.
//  3. Everything else is [checkpoint.Store]. [New] makes one of a bucket that the
//     program opened by itself.
package blob
