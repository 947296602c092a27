// Package s3server runs a real S3-compatible server for tests: versitygw, on a
// directory of its own and a free port of the loopback interface.
//
// The server is built from the module proxy at the first [Start] of a test binary
// and is no dependency of the module. Where it can't be built, tests are skipped and
// say why; with WEIR_REQUIRE_CONTAINERS=1, as where containers are missing, they
// fail. [Remove] belongs into TestMain.
package s3server
