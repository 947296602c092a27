package redis

import "testing"

func TestSlotsAreThoseOfTheClusterSpecification(t *testing.T) {
	if c := crc16([]byte("123456789")); c != 0x31c3 {
		t.Errorf("CRC16 of 123456789 is %#x, want 0x31c3", c)
	}
	for key, want := range map[string]uint16{
		"foo": 12182, "{foo}bar": 12182, "a{foo}{bar}": 12182, "": 0,
		"{}foo": slotOf([]byte("{}foo")), "user{": slotOf([]byte("user{")),
	} {
		if got := slotOf([]byte(key)); got != want {
			t.Errorf("slot of %q is %d, want %d", key, got, want)
		}
	}
	if slotOf([]byte("{}foo")) == slotOf([]byte("{}bar")) {
		t.Error("an empty hash tag counts")
	}
}

func TestEachSlotHasATag(t *testing.T) {
	for slot, tag := range slotTags() {
		if got := slotOf([]byte("x{" + tag + "}:y")); int(got) != slot {
			t.Fatalf("tag %q of slot %d hashes to slot %d", tag, slot, got)
		}
	}
}
