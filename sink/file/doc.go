// Package file writes a stream to files of a directory, each value once. A file appears,
// whole, when the checkpoint is committed whose values it has, and is never changed
// afterwards.
//
// It is a participant of package twophase, which says who calls what in which order. There
// is one file for each checkpoint and subtask that wrote something; who wants larger files
// takes checkpoints less often.
//
// A transaction is a file in a hidden folder of the directory, .weir/APP/OPERATOR. It is
// prepared when the file is synced and closed, and has the name that it will have, and so
// has the folder. It is committed by a rename into the directory, which is synced as well;
// so the folder must be on the same file system.
//
// # What is committed and gone
//
// Whoever reads the files may take them away, also right after the commit and before the
// app knows of it. The commit is repeated then, and must not be taken for a loss. So before
// a file is renamed a mark is made, an empty file whose name says up to which number the
// files of one subtask are committed, which they are in the order of their numbers. (Where
// streams are merged in front of the sink each has subtasks of its own.) The mark is durable
// before the rename. If neither the prepared file nor the one in the directory is there, it
// says whether the file was committed. One that was lost is never below a mark unless somebody
// accepted the loss: package twophase commits nothing behind it before that.
//
// While the prepared file is there, it is not committed, whatever its mark says. So a rename
// that fails takes the mark back, durably, and so does a start that rolls the file back. One
// instant is left at which nothing can tell: the process dies between mark and rename, or
// can't take the mark back, and somebody else removes the prepared file before the next
// commit. It passes for one that was committed and taken away then. So leave the hidden
// folder alone while an app that writes there may be started again.
//
// A mark replaces the one before it. The last one of a subtask in an incarnation stays: a
// savepoint may name its files, and an app may start from that at any time.
package file
