package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// markerName is the object that says who owns a store.
const markerName = "weir-store.json"

const markerVersion = 1

type marker struct {
	Version   int    `json:"version"`
	App       string `json:"app"`
	KeyGroups int    `json:"keyGroups"`
}

// Claim makes sure that the store belongs to app and holds its state in keyGroups
// key-groups, which are written into it at the first call. Errors are
// *WrongAppError, *KeyGroupsError, *VersionError, *DamagedError and *StoreError.
func Claim(ctx context.Context, store Store, app string, keyGroups int) error {
	b, err := store.Get(ctx, markerName)
	if errors.Is(err, ErrNotFound) {
		want, merr := json.MarshalIndent(marker{markerVersion, app, keyGroups}, "", "  ")
		if merr != nil {
			return fmt.Errorf("claim checkpoint store %s: %w", store, merr)
		}
		err = store.Put(ctx, markerName, append(want, '\n'))
		if !errors.Is(err, ErrExists) {
			return wrap("claim checkpoint store", err)
		}
		// Another process was faster: what it wrote decides.
		b, err = store.Get(ctx, markerName)
	}
	if err != nil {
		return fmt.Errorf("claim checkpoint store: %w", err)
	}
	var m marker
	if err := json.Unmarshal(b, &m); err != nil {
		return &DamagedError{Object: markerName, Store: store.String(), What: "it is not the JSON that was written", Err: err}
	}
	switch {
	case m.Version != markerVersion:
		return &VersionError{Object: markerName, Store: store.String(), Version: m.Version, Known: markerVersion}
	case m.App != app:
		return &WrongAppError{Store: store.String(), Want: app, Got: m.App}
	case m.KeyGroups != keyGroups:
		return &KeyGroupsError{Store: store.String(), Want: keyGroups, Got: m.KeyGroups}
	}
	return nil
}
