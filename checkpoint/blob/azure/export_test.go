package azure

// Classify is the driver's.
var Classify = classify
