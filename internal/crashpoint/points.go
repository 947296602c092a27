package crashpoint

// Point is a named instant between two durable steps.
type Point string

// The points, in the order in which a checkpoint passes them.
const (
	BeforeBarrier    Point = "before-barrier"     // a checkpoint is due, no barrier was injected
	InFreeze         Point = "in-freeze"          // a subtask is encoding its dirty entries
	InCapture        Point = "in-capture"         // a subtask took its snapshot, not all records in flight to it have come
	BeforeSegment    Point = "before-segment"     // all subtasks acknowledged, nothing was written
	AfterInFlight    Point = "after-in-flight"    // the object with the records in flight is durable, the manifest is not
	AfterSegment     Point = "after-segment"      // the segment is durable, the manifest is not
	BeforeManifest   Point = "before-manifest"    // the manifest is encoded, not written
	AfterManifest    Point = "after-manifest"     // the manifest is durable, the transaction is open
	AfterRecord      Point = "after-record"       // the commit record is acknowledged
	AfterOffsets     Point = "after-offsets"      // between TxnOffsetCommit and EndTxn
	AfterCommit      Point = "after-commit"       // EndTxn was acknowledged, nobody was told
	BeforeSinks      Point = "before-sinks"       // before the sinks learn of the commit
	AfterSinks       Point = "after-sinks"        // after the sinks learned of the commit
	BeforeIngest     Point = "before-ingest"      // after the commit, before the local store has it
	AfterIngest      Point = "after-ingest"       // the local store equals the committed checkpoint
	InMerge          Point = "in-merge"           // a merged segment is durable, no manifest names it
	BeforeGC         Point = "before-gc"          // garbage is known, nothing was deleted
	InGC             Point = "in-gc"              // some garbage is deleted
	InRestore        Point = "in-restore"         // the manifest is read, state is half loaded, or taken into the local store
	AfterRestore     Point = "after-restore"      // state is loaded, nothing was polled
	InReplay         Point = "in-replay"          // a batch of what was in flight was processed again
	InStorePut       Point = "in-store-put"       // directory store: temporary file written, not renamed
	AfterStoreRename Point = "after-store-rename" // directory store: renamed, directory not synced
)

// All lists every point.
var All = []Point{
	BeforeBarrier, InFreeze, InCapture, BeforeSegment, AfterInFlight, AfterSegment, BeforeManifest, AfterManifest,
	AfterRecord, AfterOffsets, AfterCommit, BeforeSinks, AfterSinks, BeforeIngest, AfterIngest, InMerge, BeforeGC, InGC,
	InRestore, AfterRestore, InReplay, InStorePut, AfterStoreRename,
}

// Unaligned lists the points that only a checkpoint with records in flight passes, and
// the restore of one.
var Unaligned = []Point{InCapture, AfterInFlight, InReplay}

// Rare lists the points that a process passes not at all often. Of the others each
// checkpoint passes most.
var Rare = []Point{InRestore, AfterRestore, InReplay, BeforeGC, InGC, InMerge, AfterInFlight}
