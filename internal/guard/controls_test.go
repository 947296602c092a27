package guard_test

import (
	"fmt"
	"os"
	"os/exec"
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
	guard.Alignment:           {{"processor", "TestEveryOrderOfEventsGivesAConsistentCut"}},
	guard.HeldOutputs:         {{"processor", "TestOutputsOfTheNextEpochWaitForTheCommitAndKeepTheirOrder"}},
	guard.CarryOver:           {{"checkpoint", "TestS08_FailedPersistCarriesItsChangesOver"}},
	guard.IngestAfterCommit:   {{".", "TestQueryDoesNotSeeACheckpointThatIsBeingCommitted"}},
	guard.InUse:               {{"checkpoint", "TestCollectDeletesOnlyOldGarbage"}},
	guard.NewestWins:          {{"state/segment", "TestChainOfSegmentsEqualsModel"}},
	guard.Tombstones:          {{"state/segment", "TestMergedPiecesEqualModel"}},
	guard.Timers:              {{".", "TestS32_TimersAndWatermarksSurviveARestartWithOtherParallelism"}},
	guard.Membership:          {{"txn", "TestCommitOfAMemberThatWasReplacedIsRefused"}},
	guard.SingleOwner:         {{"txn", "TestSingleActiveStandbyTakesOver"}},
	guard.SameMember:          {{"txn", "TestMemberThatJoinedAnewHasLostWhatItHad"}},
}

// TestNegativeControls takes out each guard in turn, in a build that allows it, and
// demands that its tests fail; and that the same tests pass in the same build while
// the guard is in.
func TestNegativeControls(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles and runs other packages' tests; not in -short")
	}
	for _, g := range guard.All {
		if len(controls[g]) == 0 {
			t.Errorf("guard %q has no test that fails without it", g)
		}
		for _, c := range controls[g] {
			takeOut(t, g, c)
		}
	}
}

func takeOut(t *testing.T, g guard.Guard, c control) {
	t.Run(string(g)+"/"+c.test, func(t *testing.T) {
		out, err := run(c.pkg, c.test, "")
		if err != nil {
			t.Fatalf("with every guard in, %s in %s fails: %v\n%s", c.test, c.pkg, err, out)
		}
		if strings.Contains(out, "--- SKIP: "+c.test) {
			t.Skipf("%s in %s is skipped here, which is a failure with WEIR_REQUIRE_CONTAINERS=1", c.test, c.pkg)
		}
		out, err = run(c.pkg, c.test, g)
		if err == nil {
			t.Fatalf("without guard %q, %s in %s still passes", g, c.test, c.pkg)
		}
		if want := "--- FAIL: " + c.test; !strings.Contains(out, want) {
			t.Fatalf("without guard %q the run of %s in %s fails for another reason: %v\n%s", g, c.test, c.pkg, err, out)
		}
		t.Logf("without it, %s in %s is red", c.test, c.pkg)
	})
}

// run runs one test in a build whose guards can be taken out.
func run(pkg, test string, g guard.Guard) (string, error) {
	cmd := exec.Command("go", "test", "-tags", "weirbroken", "-count", "1", "-v", "-timeout", "3m", "-run", fmt.Sprintf("^%s$", test), "./"+pkg)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "WEIR_BREAK="+string(g))
	out, err := cmd.CombinedOutput()
	return string(out), err
}
