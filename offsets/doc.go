// Package offsets says where a checkpoint ended and which checkpoint it was: the
// positions, the pointer that travels in the metadata of each committed offset, and
// the commit record that repeats both in a compacted topic.
//
// It encodes, decodes and verifies. It does no I/O, has no clock and starts no
// goroutine; every function may be called from anywhere.
//
// Who calls what, in order:
//
//  1. When an app is built, [ValidateNames] makes sure that every pointer will fit.
//  2. At each commit, package txn writes a [CommitRecord] to the topic
//     <app>-checkpoints, under the app's name as key, and then commits each
//     partition's offset with a [Pointer] as metadata, in the same transaction.
//  3. At start, with the committed offsets of all assigned partitions at hand,
//     [Verify] says which manifest they name or everything that is wrong with them.
//  4. When that manifest has been read, [VerifyPositions] compares its positions
//     with the committed offsets.
//  5. Where [Verify] says that nothing was ever committed, the caller looks for a
//     commit record ([ParseCommitRecord]): if there is one, the group's offsets
//     expired or were deleted, and this is no first start.
//
// The committed offsets are the truth, the commit record is a mirror.
//
// # Pointer, version 1
//
// One line of text, because Kafka's metadata is a string and brokers don't preserve
// bytes that are not UTF-8:
//
//	weir1|wordcount|host-a|4711|90211|a1b2c3d4|000102030405060708090a0b0c0d0e0f|9dd83916
//	      app       inst.  ckpt offset incarn.  manifest hash                    crc32c
//
// Checkpoint and offset are decimal, the rest is hexadecimal. The checksum covers
// everything before the last bar. There is one spelling of each pointer; any other
// is damaged.
//
// # Commit record, version 1
//
//	magic        "WEIRC"
//	version      1 byte
//	app          length (uvarint), bytes
//	instance     length (uvarint), bytes
//	checkpoint   8 bytes    big-endian, as all that follow
//	incarnation  4 bytes
//	hash         16 bytes
//	at           8 bytes    milliseconds since 1970
//	topics       count (uvarint), sorted by name; for each
//	  name         length (uvarint), bytes
//	  partitions   count (uvarint), sorted by number; for each
//	    number, offset, leader epoch (varint each)
//	crc32c       4 bytes    of everything before it
//
// As with the pointer, equal records have equal bytes and any other spelling is
// damaged.
package offsets
