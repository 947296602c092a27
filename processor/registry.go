package processor

import (
	"errors"
	"fmt"
	"slices"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/state"
)

// kindDropped marks a state whose operator left the topology: its number stays
// taken, so that old entries never come back under another name.
const kindDropped = "dropped"

// register compares the states of the topology with those of the checkpoint and
// gives new ones a number.
func (inc *incarnation) register() error {
	var errs []error
	old := inc.base.States
	next := uint16(1)
	for _, s := range old {
		next = max(next, s.ID+1)
	}
	if inc.base.KeyGroups != 0 && inc.base.KeyGroups != inc.cfg.KeyGroups {
		errs = append(errs, &checkpoint.KeyGroupsError{Store: inc.cfg.Store.String(), Want: inc.cfg.KeyGroups, Got: inc.base.KeyGroups})
	}
	known := map[[2]string]bool{}
	for _, d := range inc.plan.States {
		known[[2]string{d.Operator, d.Name}] = true
		i := slices.IndexFunc(old, func(s checkpoint.StateInfo) bool {
			return s.Operator == d.Operator && s.Name == d.Name && s.Kind != kindDropped
		})
		info := checkpoint.StateInfo{
			Operator: d.Operator, Name: d.Name, Kind: d.Kind,
			KeyCodec: d.KeyCodec, SubCodec: d.SubCodec, ValueCodec: d.ValueCodec, ValueVersion: d.ValueVersion, Clock: d.Clock,
		}
		if i < 0 {
			info.ID = next
			next++
			inc.states = append(inc.states, info)
			continue
		}
		was := old[i]
		info.Follow(was, inc.clock.Now().UnixMilli(), inc.base.EventTime.Stage(d.Stage))
		where := fmt.Sprintf("operator %q, state %q", d.Operator, d.Name)
		if both := was.Kind == state.KindBroadcast && d.Kind == state.KindBroadcast; !both && was.KeyCodec != d.KeyCodec { // such a state has no keys
			errs = append(errs, fmt.Errorf("%s: the keys of checkpoint %d were written by codec %q, the topology uses %q; keys never change type: give the operator a new ID, or go back to the old codec", where, inc.base.Checkpoint, was.KeyCodec, d.KeyCodec))
		}
		if was.Kind != d.Kind {
			errs = append(errs, fmt.Errorf("%s: checkpoint %d holds a %s state, the topology declares a %s state; give the state a new name", where, inc.base.Checkpoint, was.Kind, d.Kind))
		}
		if was.Kind == d.Kind && was.SubCodec != d.SubCodec {
			errs = append(errs, fmt.Errorf("%s: the map keys of checkpoint %d were written by codec %q, the topology uses %q; keys never change type: give the state a new name, or go back to the old codec", where, inc.base.Checkpoint, was.SubCodec, d.SubCodec))
		}
		if d.Kind == state.KindTimers {
			// No value is read. Tools wrote a version for it all the same.
		} else if was.ValueCodec != d.ValueCodec {
			errs = append(errs, fmt.Errorf("%s: the values of checkpoint %d were written by codec %q, the topology uses %q; give the state a new name, or read the old values by a codec.Migrator under the old name", where, inc.base.Checkpoint, was.ValueCodec, d.ValueCodec))
		} else if was.ValueVersion > d.ValueVersion {
			errs = append(errs, fmt.Errorf("%s: the values of checkpoint %d were written by version %d of codec %q, this program knows version %d; run the newer program", where, inc.base.Checkpoint, was.ValueVersion, was.ValueCodec, d.ValueVersion))
		}
		inc.states = append(inc.states, info)
	}
	for _, s := range old {
		if s.Kind == kindDropped {
			inc.states = append(inc.states, s)
			continue
		}
		if known[[2]string{s.Operator, s.Name}] {
			continue
		}
		if !inc.cfg.AllowDropped[s.Operator] {
			errs = append(errs, fmt.Errorf("checkpoint %d holds state %q of operator %q, which the topology lacks; bring it back, or give it the new name in a copy of the state (weir savepoint edit --rename-operator or --rename-state), or drop it with weir.AllowDroppedState(%q)", inc.base.Checkpoint, s.Name, s.Operator, s.Operator))
			continue
		}
		s.Kind = kindDropped
		inc.states = append(inc.states, s)
	}
	return errors.Join(errs...)
}

// stateIDs returns the registry numbers of a scope's handles.
func (inc *incarnation) stateIDs(s *state.Scope) ([]uint16, error) {
	if errs := s.Errors(); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	var ids []uint16
	for _, d := range s.Descriptors() {
		i := slices.IndexFunc(inc.states, func(i checkpoint.StateInfo) bool {
			return i.Operator == d.Operator && i.Name == d.Name && i.Kind != kindDropped
		})
		if i < 0 {
			return nil, fmt.Errorf("operator %q declares state %q on a subtask, but not when the topology was built: a setup function must declare the same states each time it is called", d.Operator, d.Name)
		}
		ids = append(ids, inc.states[i].ID)
	}
	return ids, nil
}
