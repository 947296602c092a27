package docs_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/sink/redis"
	"github.com/weirstream/weir/source"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m, "docs")) }

// Balance is what an account has.
type Balance struct {
	Account  string
	Cents    int64
	Revision int64
}

// Sale is what a shop sold to somebody.
type Sale struct {
	ID, Shop, Product string
	Items             int64
}

func salesToRedis(sales weir.Stream[Sale]) {
	where := redis.Options{Addrs: []string{"localhost:6379"}, Prefix: "shop:"}
	weir.To(sales, "totals", redis.WriteAhead(where, func(b *redis.Batch, s Sale) {
		b.IncrBy("sold:"+s.Product, s.Items)
		b.Transaction(func() {
			b.LPush("{"+s.Shop+"}:latest", s.ID)
			b.LTrim("{"+s.Shop+"}:latest", 0, 99)
		})
	}))
}

func writeBalance(u *redis.Upserts, b Balance) {
	// All accounts share this key and count revisions each for itself: no guard.
	u.ZAdd("richest", float64(b.Cents), b.Account)
	u.Guard(b.Revision)
	u.HSet("balance:"+b.Account, "cents", strconv.FormatInt(b.Cents, 10))
}

func toRedis(balances weir.Stream[Balance]) {
	where := redis.Options{Addrs: []string{"localhost:6379"}, Prefix: "shop:"}
	weir.To(balances, "balances", redis.Upsert(where, writeBalance))
}

func TestGuidesRedisSinksCanBeBuilt(t *testing.T) {
	app := weir.New("shop", weir.Brokers("localhost:1"), weir.Store(checkpoint.NewMem()))
	toRedis(weir.From(app, "balances-in", source.Values("balances", codec.JSON[Balance]())))
	salesToRedis(weir.From(app, "sales-in", source.Values("sales", codec.JSON[Sale]())))
	if err := app.Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestGuidesBalancesAreAllWritten(t *testing.T) {
	s := redistest.Shared(t)
	cl := s.Client(t)
	if err := cl.FlushDB(t.Context()).Err(); err != nil { // of an earlier run
		t.Fatal(err)
	}
	brokers := cluster(t, "in")
	produce(t, brokers, "in", `{"Account":"old","Cents":100,"Revision":57}`, `{"Account":"new","Cents":900,"Revision":1}`)
	app := weir.New("balances", weir.Brokers(brokers...), weir.Store(checkpoint.NewMem()), weir.Parallelism(1), weir.Drain())
	in := weir.From(app, "in", source.Values("in", codec.JSON[Balance]()))
	weir.To(in, "out", redis.Upsert(redis.Options{Addrs: []string{s.Addr}, Prefix: "shop:"}, writeBalance))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := app.Run(ctx); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(cl.ZRange(t.Context(), "shop:richest", 0, -1).Val(), cl.HGet(t.Context(), "shop:balance:old", "cents").Val(), cl.HGet(t.Context(), "shop:balance:new", "cents").Val())
	if want := "[old new]100900"; got != want {
		t.Errorf("Redis has %s, want %s", got, want)
	}
}

func TestAccessRightsInOperationsAreEnough(t *testing.T) {
	s := redistest.Shared(t)
	cl := s.Client(t)
	if err := cl.FlushDB(t.Context()).Err(); err != nil { // of an earlier run
		t.Fatal(err)
	}
	if err := cl.Do(t.Context(), "ACL", "SETUSER", "shop", "on", ">PASSWORD", "~shop:*", "+hset", "+zadd", "+evalsha", "+script|load", "+get", "+set", "+rpush", "+rpop", "+lindex", "+info").Err(); err != nil {
		t.Fatal(err)
	}
	brokers := cluster(t, "in")
	produce(t, brokers, "in", "1", "2", "x")
	app := weir.New("rights", weir.Brokers(brokers...), weir.Store(checkpoint.NewMem()), weir.Drain())
	in := weir.From(app, "in", source.Values("in", codec.String))
	o := redis.Options{Addrs: []string{s.Addr}, Prefix: "shop:", Username: "shop", Password: "PASSWORD"}
	weir.To(in, "out", redis.Upsert(o, func(u *redis.Upserts, v string) {
		u.HSet("h", v, v)
		u.Guard(1)
		u.ZAdd("z", 1, v)
		u.ZAdd("h", 1, v) // wrong type
	}, redis.DeadLetters()))
	weir.To(in, "ahead", redis.WriteAhead(o, func(b *redis.Batch, v string) {
		b.HSet("ahead", v, v)
		b.ZAdd("ahead", 1, v) // wrong type
	}, redis.DeadLetters()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := app.Run(ctx); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(cl.HGetAll(t.Context(), "shop:h").Val(), cl.ZRange(t.Context(), "shop:z", 0, -1).Val(), cl.LLen(t.Context(), "shop:weir:dead:out").Val(),
		cl.HLen(t.Context(), "shop:ahead").Val(), cl.LLen(t.Context(), "shop:weir:dead:rights:ahead").Val())
	if want := "map[1:1 2:2 x:x] [1 2 x] 3 3 3"; got != want {
		t.Errorf("Redis has %s, want %s", got, want)
	}
	if ttl := cl.TTL(t.Context(), "shop:weir:version:shop:z").Val(); ttl < 6*24*time.Hour {
		t.Errorf("the version of a key expires in %v", ttl)
	}
}
