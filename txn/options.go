package txn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// refusedOption is a client option that is the session's own.
type refusedOption struct {
	name    string
	opt     any // the option's func, by which the client tells its value
	instead string
}

const (
	reasonIdentity = "set the app's name and its instance id; both are needed to fence and to find state again"
	reasonOffsets  = "positions come from the last committed checkpoint; to start elsewhere use a savepoint or the explicit reset flags"
	reasonCommit   = "offsets are committed in the transaction of each checkpoint and nowhere else"
	reasonHooks    = "the session restores and hands over partitions there"
	reasonWrites   = "exactly-once needs idempotent, fully acknowledged writes"
	reasonInput    = "name input topics in the topology"
)

var refusedOptions = []refusedOption{
	{"TransactionalID", kgo.TransactionalID, reasonIdentity},
	{"ConsumerGroup", kgo.ConsumerGroup, reasonIdentity},
	{"InstanceID", kgo.InstanceID, reasonIdentity},
	{"ShareGroup", kgo.ShareGroup, "a share group has no positions that could be committed in a transaction"},
	{"TransactionTimeout", kgo.TransactionTimeout, "set the app's transaction timeout: recovery and the commit deadline are derived from it"},
	{"SessionTimeout", kgo.SessionTimeout, "set the app's session timeout"},
	{"RebalanceTimeout", kgo.RebalanceTimeout, "set the app's rebalance timeout"},
	{"HeartbeatInterval", kgo.HeartbeatInterval, "set the app's heartbeat interval"},
	{"GroupProtocol", kgo.GroupProtocol, "choose between the classic and the next-generation group protocol in the app's options"},
	{"Balancers", kgo.Balancers, "the balancer follows from the app's way of owning keys"},
	{"ServerSideBalancer", kgo.ServerSideBalancer, "choose the next-generation group protocol in the app's options"},
	{"FetchIsolationLevel", kgo.FetchIsolationLevel, "inputs are always read committed"},
	{"KeepControlRecords", kgo.KeepControlRecords, "the source always keeps them, to know when a transactional input is drained"},
	{"KeepRetryableFetchErrors", kgo.KeepRetryableFetchErrors, "the client tries again by itself, and any other error of a fetch ends the app or restarts it"},
	{"ConsumeTopics", kgo.ConsumeTopics, reasonInput},
	{"ConsumePartitions", kgo.ConsumePartitions, reasonInput},
	{"ConsumeRegex", kgo.ConsumeRegex, reasonInput},
	{"ConsumeExcludeTopics", kgo.ConsumeExcludeTopics, reasonInput},
	{"ConsumeStartOffset", kgo.ConsumeStartOffset, reasonOffsets},
	{"ConsumeResetOffset", kgo.ConsumeResetOffset, reasonOffsets},
	{"AdjustFetchOffsetsFn", kgo.AdjustFetchOffsetsFn, reasonOffsets},
	{"AutoCommitCallback", kgo.AutoCommitCallback, reasonCommit},
	{"AutoCommitInterval", kgo.AutoCommitInterval, reasonCommit},
	{"AutoCommitMarks", kgo.AutoCommitMarks, reasonCommit},
	{"GreedyAutoCommit", kgo.GreedyAutoCommit, reasonCommit},
	{"BlockRebalanceOnPoll", kgo.BlockRebalanceOnPoll, "a revoked partition waits for its last checkpoint anyway"},
	{"OnPartitionsAssigned", kgo.OnPartitionsAssigned, reasonHooks},
	{"OnPartitionsRevoked", kgo.OnPartitionsRevoked, reasonHooks},
	{"OnPartitionsLost", kgo.OnPartitionsLost, reasonHooks},
	{"OnOffsetsFetched", kgo.OnOffsetsFetched, reasonHooks},
	{"DisableIdempotentWrite", kgo.DisableIdempotentWrite, reasonWrites},
	{"AllowIdempotentProduceCancellation", kgo.AllowIdempotentProduceCancellation, reasonWrites},
	{"RequiredAcks", kgo.RequiredAcks, reasonWrites},
	{"StopProducerOnDataLossDetected", kgo.StopProducerOnDataLossDetected, "the session always stops on data loss"},
	{"ProducerOnDataLossDetected", kgo.ProducerOnDataLossDetected, "the session always stops on data loss"},
	{"RecordDeliveryTimeout", kgo.RecordDeliveryTimeout, "it counts from the timestamp of the input; the commit has a deadline of its own"},
	{"ManualFlushing", kgo.ManualFlushing, "each checkpoint flushes"},
	{"WithContext", kgo.WithContext, "pass the context to Run"},
}

// RefusedOptions returns the names of the client options that ValidateOptions
// refuses.
func RefusedOptions() []string {
	names := make([]string, len(refusedOptions))
	for i, r := range refusedOptions {
		names[i] = r.name
	}
	slices.Sort(names)
	return names
}

// ValidateOptions reports all of the user's client options that would break the
// guarantee, each by name and with what to do instead. An option that sets what is
// the default anyway passes. It connects to nobody.
func ValidateOptions(opts []kgo.Opt) error {
	var errs []error
	for i, opt := range opts {
		errs = append(errs, validateOption(i, opt))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("client options: %w", err)
	}
	return nil
}

// implied are options that the client sets by itself when another one is set.
var implied = map[string][]string{
	"ConsumerGroup":      {"AutoCommitCallback", "OnPartitionsAssigned", "OnPartitionsRevoked", "OnPartitionsLost"},
	"ConsumeResetOffset": {"ConsumeStartOffset"},
}

var offline = kgo.Dialer(func(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("options are only looked at")
})

// company is with what an option is tried: some are refused by the client unless another
// one goes with them.
var company = []*others{
	with(),
	with(kgo.DisableIdempotentWrite()),
	with(offline, kgo.ConsumeRegex(), kgo.ConsumeTopics("t")),
	with(offline, kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t")),
}

// others are options, and the values of all refused options in a client that has them
// alone. Each values[i] is of refusedOptions[i]; they are looked up once in a process, not
// anew for each option and app: it takes a client.
type others struct {
	opts   []kgo.Opt
	values func() ([][]any, error)
}

func with(opts ...kgo.Opt) *others {
	return &others{opts, sync.OnceValues(func() ([][]any, error) {
		cl, err := kgo.NewClient(opts...)
		if err != nil {
			return nil, err
		}
		defer cl.Close()
		values := make([][]any, len(refusedOptions))
		for i, r := range refusedOptions {
			values[i] = cl.OptValues(r.opt)
		}
		return values, nil
	})}
}

// validateOption looks at what the option changes in a client that has no other:
// options are opaque funcs, but a client tells its values.
func validateOption(i int, opt kgo.Opt) error {
	if opt == nil {
		return fmt.Errorf("option %d is nil", i+1)
	}
	var invalid error
	for _, with := range company {
		changed, err := changedBy(opt, with)
		if errors.Is(err, errHarmless) {
			return nil
		}
		if err != nil {
			if invalid == nil {
				invalid = err
			}
			continue
		}
		var errs []error
		for _, r := range changed {
			errs = append(errs, fmt.Errorf("kgo.%s is not yours to set: %s", r.name, r.instead))
		}
		if len(errs) == 0 && invalid != nil {
			// It means something only to a group or the like, and those are ours. The
			// callbacks of a group can't be seen in a client, which wraps them.
			errs = append(errs, fmt.Errorf("kgo.%s is not yours to set: %s", groupCallback(opt), reasonHooks))
		}
		return errors.Join(errs...)
	}
	return fmt.Errorf("option %d: %w", i+1, invalid)
}

var errHarmless = errors.New("harmless")

// changedBy returns the refused options whose values opt changes in a client with
// the options with. It fails where the client refuses opt.
func changedBy(opt kgo.Opt, with *others) ([]refusedOption, error) {
	set, err := kgo.NewClient(append(slices.Clone(with.opts), opt)...)
	if err != nil {
		return nil, err
	}
	defer set.Close()
	unset, err := with.values()
	if err != nil {
		return nil, err
	}
	if set.OptValue(kgo.DisableAutoCommit) == true {
		return nil, errHarmless // what the session does itself
	}
	var changed []refusedOption
	var noise []string
	for i, r := range refusedOptions {
		if !sameValues(set.OptValues(r.opt), unset[i]) {
			changed = append(changed, r)
			noise = append(noise, implied[r.name]...)
		}
	}
	return slices.DeleteFunc(changed, func(r refusedOption) bool { return slices.Contains(noise, r.name) }), nil
}

// groupCallback names a callback option by the func that made it.
func groupCallback(opt kgo.Opt) string {
	names := []string{"OnPartitionsAssigned", "OnPartitionsRevoked", "OnPartitionsLost"}
	if v := reflect.ValueOf(opt); v.Kind() == reflect.Struct && v.NumField() == 1 && v.Field(0).Kind() == reflect.Func {
		if f := runtime.FuncForPC(v.Field(0).Pointer()); f != nil {
			for _, name := range names {
				if strings.Contains(f.Name(), "."+name+".") {
					return name
				}
			}
		}
	}
	return strings.Join(names, " or kgo.")
}

func sameValues(a, b []any) bool {
	return slices.EqualFunc(a, b, func(x, y any) bool {
		if x == nil || y == nil {
			return x == y
		}
		v, w := reflect.ValueOf(x), reflect.ValueOf(y)
		if v.Kind() == reflect.Func && w.Kind() == reflect.Func {
			return v.Pointer() == w.Pointer()
		}
		return reflect.DeepEqual(x, y)
	})
}
