// Package integration tests Weir as a service that runs, dies and runs again
// against real brokers in containers, and where a death is all that matters against
// embedded ones. It has no code of its own; the service is in
// the folder below and is built, with crash points, once for all tests.
//
//	main_test.go     TestMain: is Docker there, what is left at the end
//	kafka_test.go    brokers in containers, and embedded ones
//	process_test.go  the service: start, await an event, kill, pause, stop
//	proxy_test.go    what stands between service and broker and loses answers
//	world_test.go    one test's topics, input, store, and the oracle that knows
//	                 which output the input must have
//	backend_test.go  where the service has its state, and what may happen to it there
//
// A scenario makes a world, feeds it, hurts it, and lets the oracle judge: every
// output once, in per-key order, nothing missing, the committed offsets at the end
// of the input, no transaction open and no reader pinned.
//
// Without Docker the tests that need it are skipped, which TestMain says once; with
// WEIR_REQUIRE_CONTAINERS=1 that is a failure. With it, a run of the whole package
// also has to have sent at least 100 SIGKILLs at random instants.
package integration
