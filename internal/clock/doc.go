// Package clock is the wall clock as the runtime sees it, so that a test can put its
// own in place.
//
// It owns the time that processing-time timers, idle partitions and entries that expire
// in processing time go by. How long something took is measured with package time.
package clock
