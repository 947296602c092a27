package weirtest

// Waiting is how many wait for the harness's clock.
func Waiting(h *Harness) int { return h.clock.Waiting() }
