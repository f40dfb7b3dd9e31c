// Package examples holds the manifests that the documentation uses, so that the
// program has them too. They are plain Kubernetes YAML, not templates.
package examples

import _ "embed"

// Nginx is the scenario of the demo: an nginx Deployment of two replicas, a
// Service in front of it, and a pod to reach them from.
//
//go:embed nginx.yaml
var Nginx []byte
