package clock

// Option returns the weir.Option that makes an app go by another clock. Package weir sets
// it when it is initialised: it is for tests that stand outside of package weir, and
// nothing that a user could come by.
var Option func(Clock) any
