// Package conformance has suites for what users plug into Weir: [Store] for a
// checkpoint.Store, [Codec] for a codec.Codec, [Sink] for a sink that writes to its
// receiver or to topics, [WriteAhead] for a write-ahead sink, and [TwoPhase] for a participant
// of two-phase commit.
//
// A suite is a struct that says how to make the thing under test; Run checks each rule of
// its contract in a subtest named after the rule. The rules are those that the runtime
// relies on: whoever breaks one loses or doubles data, or stops an app that should go on.
//
//	func TestConformance(t *testing.T) {
//		conformance.Store{Open: func(t testing.TB) checkpoint.Store { return open(t) }}.Run(t)
//	}
//
// Weir's own stores, codecs and sinks pass these suites, and each rule has a broken
// implementation in the tests of this package that it finds. Run them with -race as well.
package conformance
