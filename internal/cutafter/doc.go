// Package cutafter loses answers of Kafka brokers, in tests: the broker carries a request
// out, and the client sees the connection end instead of the answer.
package cutafter
