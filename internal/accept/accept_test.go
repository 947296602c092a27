package accept

import "testing"

func TestGivenForAnOperatorWhoseIDHasCommasAndSpaces(t *testing.T) {
	t.Setenv("WEIR_TEST_ACCEPT", "plain@3 , sums, by day@12,  led@4")
	for _, c := range []struct {
		operator   string
		checkpoint int64
		want       bool
	}{{"sums, by day", 12, true}, {"plain", 3, true}, {" led", 4, true}, {"sums", 12, false}, {"sums, by day", 1, false}, {"sums, by day", 2, false}} {
		if got := Given("WEIR_TEST_ACCEPT", c.operator, c.checkpoint); got != c.want {
			t.Errorf("%s@%d: %v", c.operator, c.checkpoint, got)
		}
	}
}

func TestGivenForOneOperatorAtOneCheckpoint(t *testing.T) {
	t.Setenv("WEIR_TEST_ACCEPT", "totals@12, a@b@7,")
	for _, c := range []struct {
		operator   string
		checkpoint int64
		want       bool
	}{{"totals", 12, true}, {"a@b", 7, true}, {"totals", 13, false}, {"total", 12, false}, {"b", 7, false}, {"", 0, false}} {
		if got := Given("WEIR_TEST_ACCEPT", c.operator, c.checkpoint); got != c.want {
			t.Errorf("%s@%d: %v", c.operator, c.checkpoint, got)
		}
	}
}
