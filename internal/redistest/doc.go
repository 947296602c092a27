// Package redistest runs real Redis servers in containers for tests, kills them, starts
// them again, moves slots of a cluster, and stands between them and a client: as a
// toxiproxy with faults that are always there, and as a [Proxy] of its own for those that
// happen at a chosen instant.
//
// A package that uses it calls [Main] in its TestMain. Without Docker its tests are
// skipped, which Main says once; with WEIR_REQUIRE_CONTAINERS=1 that is a failure.
//
// The servers are on the host's network, at ports of loopback that stay theirs while they
// are down.
package redistest
