package inside

import (
	"reflect"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/processor"
)

// Open validates a *weir.App that is to be stepped. Each of its operators then shows what
// it emits with [processor.Subtask.Show], and each sink what it is given. Sinks that write
// to something else than topics are not opened. Errors are those of App.Validate.
var Open func(app any) (*App, error)

// Option makes a weir.Option of a function.
var Option func(func(*Settings)) any

// Kill ends a *weir.App that runs as the end of its process would.
var Kill func(app any)

// Settings are those options of a test kit that go with the options of an app.
type Settings struct {
	Partitions int32     // of each input topic; 0: one
	Start      time.Time // where the clock begins; zero: at a time of the kit's own
}

// App is an app as a test kit sees it.
type App struct {
	Config   processor.Config
	Plan     *processor.Plan
	Inputs   []Input
	Outputs  []Output
	Settings Settings
}

// Input is a source.
type Input struct {
	ID, Topic string
	Type      reflect.Type // of its values
	// Record makes a record of a value of the type; nil if the source can't.
	Record func(v any) (*kgo.Record, error)
}

// Output is an operator whose values are shown.
type Output struct {
	ID, Kind string
	Type     reflect.Type // of its values
}
