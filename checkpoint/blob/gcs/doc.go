// Package gcs keeps checkpoints in Google Cloud Storage. Import it for its side
// effect: it registers the scheme gs.
//
//	gs://bucket/prefix
//
// The query takes the parameters of [gocloud.dev/blob/gcsblob.URLOpener] except
// zonal, whose objects are visible before they are complete, and those of package
// blob. Credentials are the application default credentials.
//
// An operation stops waiting for a token when its context ends. A connection that is
// silent is asked whether it lives.
//
// Objects are put under the condition that there is none, with an MD5 sum that the
// service checks.
package gcs
