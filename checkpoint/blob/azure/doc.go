// Package azure keeps checkpoints in Azure Blob Storage. Import it for its side
// effect: it registers the scheme azblob.
//
//	azblob://container/prefix?storage_account=name
//
// The query takes the parameters of [gocloud.dev/blob/azureblob.URLOpener] and those
// of package blob. Credentials come from the environment, as described in package
// azureblob: AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN,
// AZURE_STORAGE_CONNECTION_STRING, or those of azidentity. A key without
// AZURE_STORAGE_ACCOUNT is that of storage_account.
//
// Objects are put with If-None-Match. One that is larger than a block (8 MiB, or
// part_size) is sent in blocks that become visible together, each with a CRC64 sum
// that the service checks.
package azure
