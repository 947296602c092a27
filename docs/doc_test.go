// Package docs_test holds the code that the documentation shows, and checks that
// the documentation is true.
//
//	guide_test.go       the code of guide.md and operations.md
//	state_test.go       the code of guide.md on state handles
//	testing_test.go     the code of guide.md on testing
//	readme_test.go      the code of README.md
//	formats_test.go     the code of formats.md
//	recovery_test.go    the ways on after a mismatch that operations.md offers
//	docs_test.go        that every go block stands in one of these files or in an
//	                    example, that links lead somewhere, and that options,
//	                    variables and errors are there, and are all there
package docs_test
