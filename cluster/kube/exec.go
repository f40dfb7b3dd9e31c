package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/podexec"
)

// Exec runs a command in a container and gives what it prints. Where ctx ends
// first, the connection is closed: a command that reads its standard input sees the
// end of it.
func (u *User) Exec(ctx context.Context, at Place, argv []string, stdin io.Reader) ([]byte, error) {
	what := fmt.Sprintf("run %s in pod %s/%s", argv[0], at.Namespace, at.Pod)
	url := u.core().Post().Resource("pods").Namespace(at.Namespace).Name(at.Pod).SubResource("exec").VersionedParams(&corev1.PodExecOptions{
		Container: at.Container, Command: argv, Stdin: stdin != nil, Stdout: true, Stderr: true,
	}, parameters).URL()
	e, err := podexec.Open(u.config, url)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	out, said, err := podexec.Output(ctx, e, stdin)
	switch {
	case err != nil && said != "":
		return out, fmt.Errorf("pod %s/%s: %s", at.Namespace, at.Pod, said)
	case err != nil:
		return out, u.plain(what, err)
	}
	return out, nil
}

// RunBeside runs an image's command in the network namespace of a running pod, as
// an ephemeral container without any rights, and gives what it wrote to
// /dev/termination-log. The ended container stays in the pod's description:
// Kubernetes has no way to remove it.
func (u *User) RunBeside(ctx context.Context, pod cluster.Key, name, image string, argv []string) ([]byte, error) {
	what := fmt.Sprintf("start a probe in pod %s", pod)
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"ephemeralContainers": []any{ephemeral(name, image, argv)}}})
	if err != nil {
		return nil, err
	}
	at := func() *corev1.Pod { return &corev1.Pod{} }
	p := at()
	err = u.core().Patch(types.StrategicMergePatchType).Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("ephemeralcontainers").Body(patch).Do(ctx).Into(p)
	if err != nil {
		return nil, u.plain(what, err)
	}
	for {
		for _, s := range p.Status.EphemeralContainerStatuses {
			if s.Name != name {
				continue
			}
			if end := s.State.Terminated; end != nil && end.Message != "" {
				return []byte(end.Message), nil
			} else if end != nil {
				return nil, fmt.Errorf("%s: the container ended with %d (%s) and said nothing", what, end.ExitCode, end.Reason)
			}
			if w := s.State.Waiting; w != nil && w.Message != "" {
				err = fmt.Errorf("%s: %s: %s", what, w.Reason, w.Message)
			}
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%s: it did not end in time", what), err)
		case <-time.After(100 * time.Millisecond):
		}
		p = at()
		if err := u.core().Get().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).Do(ctx).Into(p); err != nil {
			return nil, u.plain(what, err)
		}
	}
}

// ephemeral is a container that the strictest Pod Security Standard lets pass.
func ephemeral(name, image string, argv []string) corev1.EphemeralContainer {
	yes, no, user := true, false, int64(65532)
	return corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: name, Image: image, ImagePullPolicy: corev1.PullIfNotPresent, Command: argv,
		SecurityContext: &corev1.SecurityContext{
			RunAsNonRoot: &yes, RunAsUser: &user, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}}
}
