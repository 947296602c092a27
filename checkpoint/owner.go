package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
)

// Owner says whose checkpoints a store holds: those that the offsets of a consumer group on
// a Kafka cluster point to. Checkpoint ids grow within a group, so those of another one say
// nothing about which of its checkpoints are needed.
type Owner struct {
	Group   string
	Cluster string // the id of the Kafka cluster; empty if its brokers tell none
}

// String returns the owner as [ParseOwner] takes it.
func (o Owner) String() string { return o.Group + "@" + o.Cluster }

// ParseOwner parses "group@cluster", as an [OwnerError] has it. A cluster that tells no id
// is empty.
func ParseOwner(s string) (Owner, error) {
	at := strings.LastIndexByte(s, '@') // a group may have one in its name
	if at < 1 {
		return Owner{}, fmt.Errorf("owner %q of a store: want group@cluster, as the error has it that refuses the store", s)
	}
	return Owner{s[:at], s[at+1:]}, nil
}

// is tells whether two owners may be one: a cluster whose id is not known may be any.
func (o Owner) is(other Owner) bool {
	return o.Group == other.Group && (o.Cluster == other.Cluster || o.Cluster == "" || other.Cluster == "")
}

const ownerPrefix = "owner/"

// ownerObject is the name of the n-th owner of a store, from 1 on. An object is never
// overwritten, so a store that changes hands gets another one, and the last one counts. Who
// puts it first has the store. None is ever deleted.
func ownerObject(n int) string { return fmt.Sprintf("%s%016x.json", ownerPrefix, n) }

const ownerVersion = 1

type ownerRecord struct {
	Version int    `json:"version"`
	Group   string `json:"group"`
	Cluster string `json:"cluster"`
}

// ClaimOwner makes sure that the store of app, which [Claim] has marked, belongs to owner.
// A store that says of no owner, which an older build wrote or nobody yet, is owner's from
// now on; and so is one of those that it may be taken from. If a cluster's id is not known,
// on either side, the group decides. Errors are *OwnerError, *VersionError, *DamagedError
// and *StoreError; after the first three nothing was changed.
func ClaimOwner(ctx context.Context, store Store, app string, owner Owner, from ...Owner) error {
	o := Ownership{Store: store, App: app, Owner: owner}
	return o.Claim(ctx, from...)
}

// Ownership is for who claims a store again and again. It remembers who had it last, so that
// only those are looked for who took it since.
type Ownership struct {
	Store Store
	App   string
	Owner Owner
	last  atomic.Pointer[numbered] // nil: not known
}

// numbered is the n-th owner of a store.
type numbered struct {
	Owner
	n int
}

// Claim is [ClaimOwner]. It may be called from any goroutine.
func (o *Ownership) Claim(ctx context.Context, from ...Owner) error {
	last, err := lastOwner(ctx, o.Store, o.last.Load())
	for err == nil {
		noted := last.Cluster != "" || o.Owner.Cluster == ""
		switch own := last.n > 0 && last.is(o.Owner); {
		case own && noted:
			o.last.Store(&last)
			return nil
		case last.n > 0 && !own && !slices.Contains(from, last.Owner):
			return &OwnerError{App: o.App, Store: o.Store.String(), Want: o.Owner, Got: last.Owner}
		}
		b, merr := json.MarshalIndent(ownerRecord{ownerVersion, o.Owner.Group, o.Owner.Cluster}, "", "  ")
		if merr != nil {
			return fmt.Errorf("claim checkpoint store %s: %w", o.Store, merr)
		}
		next := numbered{o.Owner, last.n + 1}
		if err = o.Store.Put(ctx, ownerObject(next.n), append(b, '\n')); errors.Is(err, ErrExists) {
			// Another process was faster: what it wrote decides.
			next.Owner, err = getOwner(ctx, o.Store, next.n)
		}
		last = next
	}
	return wrap("claim checkpoint store", err)
}

// CheckOwner returns an *OwnerError if the store of app belongs to another owner. It changes
// nothing. Other errors are those of [ClaimOwner].
func CheckOwner(ctx context.Context, store Store, app string, owner Owner) error {
	last, err := lastOwner(ctx, store, nil)
	switch {
	case err != nil:
		return fmt.Errorf("look whose checkpoint store it is: %w", err)
	case last.n > 0 && !last.is(owner):
		return &OwnerError{App: app, Store: store.String(), Want: owner, Got: last.Owner}
	}
	return nil
}

// lastOwner returns the last owner of a store, with number 0 if it has none. It may be known
// who was it once.
func lastOwner(ctx context.Context, store Store, known *numbered) (last numbered, err error) {
	if known != nil {
		last = *known
	}
	for {
		o, err := getOwner(ctx, store, last.n+1)
		if errors.Is(err, ErrNotFound) {
			return last, nil
		}
		if err != nil {
			return last, err
		}
		last = numbered{o, last.n + 1}
	}
}

func getOwner(ctx context.Context, store Store, n int) (Owner, error) {
	name := ownerObject(n)
	b, err := getAll(ctx, store, name)
	if err != nil {
		return Owner{}, err
	}
	var r ownerRecord
	err = json.Unmarshal(b, &r)
	switch {
	case err != nil:
		return Owner{}, &DamagedError{Object: name, Store: store.String(), What: "it is not the JSON that was written", Err: err}
	case r.Version != ownerVersion:
		return Owner{}, &VersionError{Object: name, Store: store.String(), Version: r.Version, Known: ownerVersion}
	case r.Group == "":
		return Owner{}, &DamagedError{Object: name, Store: store.String(), What: "it names no group"}
	}
	return Owner{r.Group, r.Cluster}, nil
}
