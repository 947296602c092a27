package main

import (
	"strconv"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/redis"
	"github.com/weirstream/weir/source"
)

const scoresTopic = "scores"

// Score is what a player won in a game.
type Score struct {
	Player string `json:"player"`
	Points int64  `json:"points"`
}

// Topology applies every score once: to the board, and to what is kept of the player. The
// hash tag keeps a player's keys in one slot of a cluster, so they change in one step.
func Topology(app *weir.App, where redis.Options) {
	scores := weir.From(app, "scores", source.Values(scoresTopic, codec.JSON[Score]()))
	weir.To(scores, "board", redis.WriteAhead(where, func(b *redis.Batch, s Score) {
		b.ZIncrBy("board", float64(s.Points), s.Player)
		b.Transaction(func() {
			b.IncrBy("{"+s.Player+"}:games", 1)
			b.RPush("{"+s.Player+"}:points", strconv.FormatInt(s.Points, 10))
		})
	}))
}
