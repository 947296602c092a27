package guard_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weirstream/weir/internal/guard"
)

// control is an ordinary test that must turn red without a guard.
type control struct{ pkg, test string }

// controls names for each guard at least one.
var controls = map[guard.Guard][]control{
	guard.DurableBeforeCommit: {{"checkpoint", "TestCrashAtEveryStoreOperation"}},
	guard.ReadBack:            {{"txn", "TestS02_EndAppliedButEveryAnswerLostIsReadBack"}},
	guard.BarrierPosition:     {{".", "TestCommittedPositionIsThatOfTheBarrierNotThatOfThePoll"}},
	guard.LostAfterMember:     {{"txn", "TestCommitOfALostGroupIsRefused"}},
	guard.CommitRecord:        {{"txn", "TestCommitWithNothingProducedMovesTheOffsets"}},
	guard.KnownPartitions:     {{"txn", "TestFirstCommitIsNoAbortWhenTheClientIsSlow"}},
	guard.Checksum:            {{"checkpoint", "TestS04_DamageIsRefusedByName"}},
	guard.ApplyAfterCommit:    {{".", "TestLogsAreAppliedOnlyAfterTheCommit"}, {".", "TestS38_PreparedTransactionThatNoCheckpointNamesIsRolledBack"}},
	guard.MarkerInScript:      {{"sink/redis", "TestS34_KilledBetweenBatchesAndInsideOfThem"}, {"sink/redis", "TestMarkedKeysAreLinearizable"}},
	guard.MarkerInSlot:        {{"sink/redis", "TestOperationsAreAppliedOnceAndInOrder"}},
	guard.LateCapture:         {{"processor", "TestLateRecordsArePartOfAnUnalignedCheckpoint"}},
	guard.ReplayFirst:         {{"processor", "TestWhatWasInFlightIsProcessedBeforeNewInput"}},
	guard.RouteByKeyGroup:     {{"processor", "TestWhatWasInFlightGoesToTheOwnerOfItsKeyGroup"}},
	guard.ReplayToAll:         {{"processor", "TestBroadcastRecordsInFlightAreHeardOnceByEverySubtask"}},
	guard.LookupBeforeBarrier: {{".", "TestWaitingRecordsAreCompleteBeforeTheBarrier"}},
	guard.TimeBehindLookup:    {{".", "TestWatermarkDoesNotOvertakeRecordsThatWait"}},
	guard.CapturedAgain:       {{"processor", "TestWhatIsLeftOfARestoreIsInFlightOnceMoreInFrontOfAllElse"}},
	guard.KeyGroupTimes:       {{"processor", "TestTimeOfAKeyStandsWhereItStoodUntilItsSubtaskHasPassedIt"}, {"processor", "TestTimeOfAKeyDoesNotFallWhileWhatWasInFlightIsProcessed"}},
	guard.Alignment:           {{"processor", "TestEveryOrderOfEventsGivesAConsistentCut"}},
	guard.HeldOutputs:         {{"processor", "TestOutputsOfTheNextEpochWaitForTheCommitAndKeepTheirOrder"}},
	guard.CarryOver:           {{"checkpoint", "TestS08_FailedPersistCarriesItsChangesOver"}},
	guard.FrozenValues:        {{"state", "TestWhatIsChangedInPlaceIsFrozenAsItWasAtTheCut"}},
	guard.IngestAfterCommit:   {{".", "TestQueryDoesNotSeeACheckpointThatIsBeingCommitted"}},
	guard.AskUpToEviction:     {{"state", "TestReadNamesTheNewestCheckpointOfWhatIsNotInMemory"}},
	guard.InUse:               {{"checkpoint", "TestCollectDeletesOnlyOldGarbage"}},
	guard.NewestWins:          {{"state/segment", "TestChainOfSegmentsEqualsModel"}},
	guard.Tombstones:          {{"state/segment", "TestMergedPiecesEqualModel"}},
	guard.Timers:              {{".", "TestS32_TimersAndWatermarksSurviveARestartWithOtherParallelism"}},
	guard.Membership:          {{"txn", "TestCommitOfAMemberThatWasReplacedIsRefused"}},
	guard.SingleOwner:         {{"txn", "TestSingleActiveStandbyTakesOver"}},
	guard.SameMember:          {{"txn", "TestMemberThatJoinedAnewHasLostWhatItHad"}},
	guard.WholeAssignment:     {{"statetest", "TestS17_InstanceBeginsWithAllPartitionsOfItsCheckpointOrWaits"}},
}

// TestNegativeControls takes out each guard in turn, in a build that allows it, and
// demands that its tests fail; and that the same tests pass in the same build while
// the guard is in.
func TestNegativeControls(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles and runs other packages' tests; not in -short")
	}
	b := build{dir: t.TempDir(), made: map[string]string{}}
	for _, g := range guard.All {
		if len(controls[g]) == 0 {
			t.Errorf("guard %q has no test that fails without it", g)
		}
		for _, c := range controls[g] {
			b.takeOut(t, g, c)
		}
	}
}

func (b *build) takeOut(t *testing.T, g guard.Guard, c control) {
	t.Run(string(g)+"/"+c.test, func(t *testing.T) {
		out, err := b.run(t, c, "")
		if err != nil {
			t.Fatalf("with every guard in, %s in %s fails: %v\n%s", c.test, c.pkg, err, out)
		}
		if strings.Contains(out, "--- SKIP: "+c.test) {
			t.Skipf("%s in %s is skipped here, which is a failure with WEIR_REQUIRE_CONTAINERS=1", c.test, c.pkg)
		}
		out, err = b.run(t, c, g)
		if err == nil {
			t.Fatalf("without guard %q, %s in %s still passes", g, c.test, c.pkg)
		}
		if want := "--- FAIL: " + c.test; !strings.Contains(out, want) {
			t.Fatalf("without guard %q the run of %s in %s fails for another reason: %v\n%s", g, c.test, c.pkg, err, out)
		}
		t.Logf("without it, %s in %s is red", c.test, c.pkg)
	})
}

// build is a build whose guards can be taken out.
type build struct {
	dir  string
	made map[string]string // from a package to its tests' binary
}

// tests returns the binary of a package's tests. Linking one takes longer than most of
// them run.
func (b *build) tests(t *testing.T, pkg string) string {
	t.Helper()
	bin, ok := b.made[pkg]
	if !ok {
		bin = filepath.Join(b.dir, fmt.Sprintf("%d.test", len(b.made)))
		cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "weirbroken", "-ldflags=-w", "-o", bin, "./"+pkg)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building the tests of %s: %v\n%s", pkg, err, out)
		}
		b.made[pkg] = bin
	}
	return bin
}

// root is the module's.
const root = "../.."

// run runs one test with a guard taken out, or with all of them if g is empty.
func (b *build) run(t *testing.T, c control, g guard.Guard) (string, error) {
	cmd := exec.CommandContext(t.Context(), b.tests(t, c.pkg), "-test.v", "-test.timeout", "10m", "-test.run", fmt.Sprintf("^%s$", c.test))
	cmd.Dir = filepath.Join(root, c.pkg) // where go test runs it
	// What random checks find in a hundred tries they find nearly always, in a thousand always.
	// Nobody reads the failures: they are neither made small nor kept for the next run.
	cmd.Env = append(os.Environ(), "WEIR_BREAK="+string(g), "RAPID_CHECKS=1000", "RAPID_SHRINKTIME=1ms", "RAPID_NOFAILFILE=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}
