// Bench measures Weir beside what it is compared with, on the same broker in the
// same run, and prints figures that a script can collect.
//
//	go run ./bench list
//	go run ./bench copy -brokers localhost:9092 -records 2000000
//	go run ./bench count
//
// A command prints a table for people and then one line for each figure:
//
//	figure NAME VALUE UNIT
//
// # How it is built
//
// A command is one file that calls register with its name, its figures and a
// function. Commands that compare programs on the same input use a contest: the
// contenders run one after the other, each in a process of its own (the bench
// executes itself with the hidden subcommand "contend"), for several rounds, so
// that a slow minute of the machine hits all of them. A contender's client CPU is
// the user and system time of its process from just before it makes its first
// client to its clean end: start, joining the group, the last commit and leaving
// are in it, the start of the process and reading the flags are not.
//
// Without -brokers the broker is kfake, in a process of its own too (hidden
// subcommand "broker"), so that its CPU time is nobody's. The input is written once
// for all rounds; each contender reads the whole of it in a fresh group and writes
// to a fresh topic, which is read back and counted before it is deleted.
package main
