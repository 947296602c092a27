// Package containers decides whether tests that need containers can run, and says so
// where they can't: once for each package, visibly. With WEIR_REQUIRE_CONTAINERS=1 that is
// a failure. It also removes the containers that the tests of a package began.
//
// TestMain calls [Main]; a test that needs containers calls [Need] first; whoever begins a
// container calls [Remove] for the end.
package containers
