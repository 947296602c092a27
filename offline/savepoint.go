package offline

import (
	"context"

	"github.com/weirstream/weir/checkpoint"
)

func openSavepoint(ctx context.Context, store checkpoint.Store, name string) (*Snapshot, error) {
	return nil, &NotFoundError{Store: store.String(), What: "savepoint " + name}
}
