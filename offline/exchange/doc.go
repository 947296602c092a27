// Package exchange writes entries of state to files that other programs read, and
// reads them back: JSON lines, CSV and Parquet.
//
// It owns the layout of these files; docs/operations.md describes it. Package offline
// yields the rows that a [Writer] takes, and its Builder takes those that [Read]
// yields. What was written and is read again gives the same entries, byte for byte: a
// key or value that the format cannot say, such as a string that is not UTF-8, is
// written in hexadecimal and marked as such.
package exchange
