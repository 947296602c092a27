// Package storetest checks that a checkpoint store keeps its contract. Whoever
// implements [checkpoint.Store] calls [Run] in a test.
package storetest
