// Package admin answers questions about a running app over HTTP, and takes savepoints of
// it when asked.
//
// It owns the form of requests and answers, for the server and for clients, and knows the
// app as an interface only. [Handler] serves; who runs a server with it decides where it
// listens and when it ends. [Client] asks.
//
//	GET  /status      a Status
//	POST /savepoint   a SavepointRequest; answers with a Savepoint when it is complete
//
// Bodies are JSON. An answer that is no success is an Error, with its status code: 400 for
// a request that can't be granted as it is, 403 for one that a web page of another origin
// makes, 404 and 405 for another path or method, 409 if there is a savepoint of that name,
// 503 if the app does not run or the time of the request is over, 500 for the rest.
//
// There is no authentication: whoever reaches the handler may stop the app, and have its
// state written to any store that the process can write to. Bind it to localhost, or put
// what you trust in front of it. Requests that a web page makes from another origin are
// refused.
package admin
