// Package inside is the door by which package weirtest gets into an app: package weir
// sets its functions, package weirtest calls them. It keeps what a test kit needs out of
// the API of package weir, and the test kit out of the services that import it.
package inside
