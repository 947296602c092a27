package txn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"
)

const (
	// reachTimeout bounds the wait for a first answer of any broker.
	reachTimeout = 15 * time.Second
	askPause     = 200 * time.Millisecond // between two tries to reach a coordinator

	maxTimeoutKey = "transaction.max.timeout.ms"

	// nobody is a member id that no group has.
	nobody = "weir-check"
)

// Check finds out before the first record what would fail later: brokers that don't
// answer or are too old, topics that don't exist, rights that are missing, a transaction timeout
// that the brokers refuse. It reports everything at once and changes nothing. cl is
// any client of the cluster; outputs are the topics that the app writes to.
func Check(ctx context.Context, cl *kgo.Client, cfg Config, outputs ...string) error {
	cfg = cfg.withDefaults()
	if err := checkReach(ctx, cl); err != nil {
		return err
	}
	adm := kadm.NewClient(cl)
	return errors.Join(
		checkVersions(ctx, cl),
		checkTopics(ctx, cl, cfg, outputs),
		checkGroup(ctx, cl, cfg),
		checkTransactionalID(ctx, cl, cfg),
		checkTimeout(ctx, adm, cfg),
	)
}

func checkReach(ctx context.Context, cl *kgo.Client) error {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	err := cl.Ping(ctx)
	if err == nil {
		return nil
	}
	seeds, _ := cl.OptValue(kgo.SeedBrokers).([]string)
	if loginRefused(err) {
		return fmt.Errorf("log in to Kafka at %s: %w\n  %s", strings.Join(seeds, ", "), err, loginRemedy)
	}
	return fmt.Errorf("reach Kafka at %s: %w\n  check the address (WEIR_BROKERS), that the broker is up, and that TLS and SASL are set as it expects", strings.Join(seeds, ", "), err)
}

// ClusterID returns the id that a cluster was given when it was set up, empty if its brokers
// tell none. cl is any client of it.
func ClusterID(ctx context.Context, cl *kgo.Client) (string, error) {
	m, err := kadm.NewClient(cl).BrokerMetadata(ctx)
	if err != nil {
		return "", fmt.Errorf("ask the brokers for the id of their cluster: %w", err)
	}
	return m.Cluster, nil
}

// oldest are the versions of requests that the guarantee takes: a commit that carries member
// and generation, and offsets that are told only once they are decided. The client would
// leave out what an older version has no field for, and say nothing.
var oldest = []struct {
	key     kmsg.Key
	version int16
}{
	{kmsg.TxnOffsetCommit, 3},
	{kmsg.OffsetFetch, 7},
}

func checkVersions(ctx context.Context, cl *kgo.Client) error {
	req := kmsg.NewPtrApiVersionsRequest()
	req.ClientSoftwareName, req.ClientSoftwareVersion = "weir", "1"
	resp, err := req.RequestWith(ctx, cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return fmt.Errorf("ask the brokers for their versions: %w", err)
	}
	var errs []error
	for _, need := range oldest {
		if v := spoken(cl, need.key); v < need.version {
			errs = append(errs, fmt.Errorf("kgo.MaxVersions lets the client send %s up to version %d, and exactly-once needs %d\n  allow the requests of Kafka 2.5 at least", need.key.Name(), v, need.version))
		}
		for _, k := range resp.ApiKeys {
			if k.ApiKey == int16(need.key) && k.MaxVersion < need.version {
				errs = append(errs, fmt.Errorf("the brokers know %s up to version %d, and exactly-once needs %d\n  upgrade them: Weir needs Kafka 2.5 or later", need.key.Name(), k.MaxVersion, need.version))
			}
		}
	}
	return errors.Join(errs...)
}

func checkTopics(ctx context.Context, cl *kgo.Client, cfg Config, outputs []string) error {
	need := map[string][]kmsg.ACLOperation{}
	for _, t := range cfg.Topics {
		need[t] = append(need[t], kmsg.ACLOperationRead)
	}
	for _, t := range outputs {
		need[t] = append(need[t], kmsg.ACLOperationWrite)
	}
	need[cfg.CommitTopic] = append(need[cfg.CommitTopic], kmsg.ACLOperationRead, kmsg.ACLOperationWrite)
	req := kmsg.NewPtrMetadataRequest()
	req.IncludeTopicAuthorizedOperations = true
	names := slices.Sorted(maps.Keys(need))
	for _, name := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &name
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return fmt.Errorf("describe topics %v: %w", names, err)
	}
	var errs []error
	for _, d := range resp.Topics {
		if d.Topic == nil {
			continue
		}
		name := *d.Topic
		err := kerr.ErrorForCode(d.ErrorCode)
		switch {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			if name == cfg.CommitTopic {
				continue // EnsureCommitTopic's business
			}
			errs = append(errs, fmt.Errorf("topic %q does not exist\n  create it: kafka-topics --create --topic %s --partitions N", name, name))
		case errors.Is(err, kerr.TopicAuthorizationFailed):
			// Who may neither read nor write it isn't even told whether it is there.
			for _, op := range need[name] {
				errs = append(errs, missingACL(aclName(op), "topic", name))
			}
		case err != nil:
			errs = append(errs, fmt.Errorf("describe topic %q: %w", name, err))
		default:
			if d.AuthorizedOperations == math.MinInt32 {
				continue // the broker doesn't tell
			}
			allowed := kadm.DecodeACLOperations(d.AuthorizedOperations)
			for _, op := range need[name] {
				if !slices.Contains(allowed, op) {
					errs = append(errs, missingACL(aclName(op), "topic", name))
				}
			}
		}
	}
	return errors.Join(errs...)
}

func aclName(op kmsg.ACLOperation) string {
	if op == kmsg.ACLOperationRead {
		return "Read"
	}
	return "Write"
}

func missingACL(op, resource, name string) error {
	return missingRight(op, resource, name, name)
}

// missingRight names what is to be granted: a name, or a pattern that has it.
func missingRight(op, resource, name, granted string) error {
	return fmt.Errorf("not authorised to %s %s %q\n  grant it: kafka-acls --add --allow-principal User:NAME --operation %s --%s %s", strings.ToLower(op), resource, name, op, resource, granted)
}

// checkGroup sends a heartbeat of nobody: a broker that lets us read the group
// doesn't know the member, any other says so first.
func checkGroup(ctx context.Context, cl *kgo.Client, cfg Config) error {
	req := kmsg.NewPtrHeartbeatRequest()
	req.Group, req.MemberID, req.Generation = cfg.Group, nobody, -1
	err := askCoordinator(ctx, func(ctx context.Context) error {
		resp, err := req.RequestWith(ctx, cl)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		return err
	})
	switch {
	case errors.Is(err, kerr.GroupAuthorizationFailed):
		return missingACL("Read", "group", cfg.Group)
	case isKafka(err):
		return nil
	case err != nil:
		return fmt.Errorf("ask for group %q: %w", cfg.Group, err)
	}
	return nil
}

// checkTransactionalID asks to add the group to a transaction of a producer id that
// doesn't exist: a broker that lets us write with the transactional id refuses the
// producer id.
func checkTransactionalID(ctx context.Context, cl *kgo.Client, cfg Config) error {
	id := TransactionalID(cfg.App, cfg.Instance)
	req := kmsg.NewPtrAddOffsetsToTxnRequest()
	req.TransactionalID, req.Group, req.ProducerID, req.ProducerEpoch = id, cfg.Group, -1, -1
	err := askCoordinator(ctx, func(ctx context.Context) error {
		resp, err := req.RequestWith(ctx, cl)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		return err
	})
	switch {
	case errors.Is(err, kerr.TransactionalIDAuthorizationFailed):
		// The prefix: an instance may have to fence another one.
		return missingRight("Write", "transactional-id", id, TransactionalID(cfg.App, "")+" --resource-pattern-type prefixed")
	case isKafka(err):
		return nil
	case err != nil:
		return fmt.Errorf("ask for transactional id %q: %w", id, err)
	}
	return nil
}

// askCoordinator asks until a broker answers or reachTimeout is over. A start may
// fall into the seconds in which a broker that died is still named as the coordinator,
// which says nothing about how we are set up.
func askCoordinator(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil || isKafka(err) || !sleep(ctx, askPause) {
			return err
		}
	}
}

// isKafka tells whether a broker answered, if only with an error.
func isKafka(err error) bool {
	var ke *kerr.Error
	return errors.As(err, &ke)
}

func checkTimeout(ctx context.Context, adm *kadm.Client, cfg Config) error {
	brokers, err := adm.ListBrokers(ctx)
	if err != nil || len(brokers) == 0 {
		return err
	}
	skip := func(why error) error {
		cfg.Logger.Info("the broker's "+maxTimeoutKey+" is not known, so the transaction timeout can't be checked against it", zap.Error(why))
		return nil
	}
	configs, err := adm.DescribeBrokerConfigs(ctx, brokers[0].NodeID)
	if err != nil {
		return skip(err)
	}
	for _, rc := range configs {
		if rc.Err != nil {
			return skip(rc.Err)
		}
		for _, c := range rc.Configs {
			if c.Key != maxTimeoutKey {
				continue
			}
			ms, err := strconv.ParseInt(c.MaybeValue(), 10, 64)
			if err != nil {
				return skip(err)
			}
			if limit := time.Duration(ms) * time.Millisecond; cfg.TransactionTimeout > limit {
				return fmt.Errorf("transaction timeout %v is more than the brokers' %s of %v\n  commit more often, so that it can be lower, or raise the brokers' limit", cfg.TransactionTimeout, maxTimeoutKey, limit)
			}
		}
	}
	return nil
}
