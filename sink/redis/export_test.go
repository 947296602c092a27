package redis

// ClusterForTest are the options of a cluster that all tests share.
var ClusterForTest = clusterOptions

// FreshForTest returns a name that no other test uses.
var FreshForTest = fresh
