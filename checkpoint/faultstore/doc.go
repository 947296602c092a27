// Package faultstore makes a checkpoint store fail, hang, die and lie, for tests.
//
// [Store] wraps another store and asks hooks before and after each operation.
// [Truncate], [FlipBit] and [Remove] damage an object behind a store's back, as a
// failing disk or a careless person would.
package faultstore
