package txn

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

func TestOptionsThatBreakTheGuaranteeAreRefusedByName(t *testing.T) {
	hook := func(context.Context, *kgo.Client, map[string][]int32) {}
	refused := map[string]kgo.Opt{
		"TransactionalID":          kgo.TransactionalID("x"),
		"ConsumerGroup":            kgo.ConsumerGroup("x"),
		"InstanceID":               kgo.InstanceID("x"),
		"ShareGroup":               kgo.ShareGroup("x"),
		"TransactionTimeout":       kgo.TransactionTimeout(time.Second),
		"SessionTimeout":           kgo.SessionTimeout(20 * time.Second),
		"RebalanceTimeout":         kgo.RebalanceTimeout(20 * time.Second),
		"HeartbeatInterval":        kgo.HeartbeatInterval(time.Second),
		"GroupProtocol":            kgo.GroupProtocol("x"),
		"Balancers":                kgo.Balancers(kgo.RangeBalancer()),
		"ServerSideBalancer":       kgo.ServerSideBalancer(),
		"FetchIsolationLevel":      kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		"KeepControlRecords":       kgo.KeepControlRecords(),
		"KeepRetryableFetchErrors": kgo.KeepRetryableFetchErrors(),
		"ConsumeTopics":            kgo.ConsumeTopics("x"),
		"ConsumePartitions":        kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"x": {0: kgo.NewOffset()}}),
		"ConsumeRegex":             kgo.ConsumeRegex(),
		"ConsumeExcludeTopics":     kgo.ConsumeExcludeTopics("x"),
		"ConsumeStartOffset":       kgo.ConsumeStartOffset(kgo.NewOffset().AtEnd()),
		"ConsumeResetOffset":       kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()),
		"AdjustFetchOffsetsFn": kgo.AdjustFetchOffsetsFn(func(_ context.Context, m map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
			return m, nil
		}),
		"AutoCommitCallback":                 kgo.AutoCommitCallback(func(*kgo.Client, *kmsg.OffsetCommitRequest, *kmsg.OffsetCommitResponse, error) {}),
		"AutoCommitInterval":                 kgo.AutoCommitInterval(time.Second),
		"AutoCommitMarks":                    kgo.AutoCommitMarks(),
		"GreedyAutoCommit":                   kgo.GreedyAutoCommit(),
		"BlockRebalanceOnPoll":               kgo.BlockRebalanceOnPoll(),
		"OnPartitionsAssigned":               kgo.OnPartitionsAssigned(hook),
		"OnPartitionsRevoked":                kgo.OnPartitionsRevoked(hook),
		"OnPartitionsLost":                   kgo.OnPartitionsLost(hook),
		"OnOffsetsFetched":                   kgo.OnOffsetsFetched(func(context.Context, *kgo.Client, *kmsg.OffsetFetchResponse) error { return nil }),
		"DisableIdempotentWrite":             kgo.DisableIdempotentWrite(),
		"AllowIdempotentProduceCancellation": kgo.AllowIdempotentProduceCancellation(),
		"RequiredAcks":                       kgo.RequiredAcks(kgo.LeaderAck()),
		"StopProducerOnDataLossDetected":     kgo.StopProducerOnDataLossDetected(),
		"ProducerOnDataLossDetected":         kgo.ProducerOnDataLossDetected(func(string, int32) {}),
		"RecordDeliveryTimeout":              kgo.RecordDeliveryTimeout(time.Second),
		"ManualFlushing":                     kgo.ManualFlushing(),
		"WithContext":                        kgo.WithContext(t.Context()),
	}
	for name := range refused {
		if !slices.Contains(RefusedOptions(), name) {
			t.Errorf("%s is not refused", name)
		}
	}
	for _, name := range RefusedOptions() {
		opt, ok := refused[name]
		if !ok {
			t.Errorf("%s is refused but not tested", name)
			continue
		}
		err := ValidateOptions([]kgo.Opt{kgo.ClientID("fine"), opt})
		if err == nil || !strings.Contains(err.Error(), "kgo."+name+" ") {
			t.Errorf("%s: error %v doesn't name it", name, err)
		}
		if err != nil && strings.Count(err.Error(), "kgo.") != 1 {
			t.Errorf("%s alone is reported as more: %v", name, err)
		}
	}
	all := []kgo.Opt{refused["TransactionalID"], refused["RequiredAcks"], kgo.MaxBufferedRecords(3), refused["OnPartitionsLost"]}
	err := ValidateOptions(all)
	for _, name := range []string{"TransactionalID", "RequiredAcks", "OnPartitionsLost"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s missing in %v", name, err)
		}
	}
}

func TestOrdinaryOptionsPass(t *testing.T) {
	err := ValidateOptions([]kgo.Opt{
		kgo.SeedBrokers("a:9092", "b:9092"), kgo.ClientID("x"), kgo.DialTLSConfig(&tls.Config{}),
		kgo.Dialer(func(context.Context, string, string) (net.Conn, error) { return nil, nil }),
		kgo.SASL(plain.Auth{User: "u", Pass: "p"}.AsMechanism()), kgo.Rack("r"), kgo.FetchMaxBytes(1 << 20),
		kgo.ProducerLinger(0), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.ZstdCompression()),
		kgo.WithLogger(kgo.BasicLogger(nil, kgo.LogLevelNone, nil)), kgo.DisableAutoCommit(), kgo.RequiredAcks(kgo.AllISRAcks()),
	})
	if err != nil {
		t.Error(err)
	}
}

func TestInvalidOptionIsReported(t *testing.T) {
	if err := ValidateOptions([]kgo.Opt{nil}); err == nil {
		t.Error("nil passes")
	}
	if err := ValidateOptions([]kgo.Opt{kgo.MaxBufferedRecords(-1)}); err == nil || !strings.Contains(err.Error(), "option 1") {
		t.Error(err)
	}
	if names := RefusedOptions(); !slices.IsSorted(names) {
		t.Error(names)
	}
}
