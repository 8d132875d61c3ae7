package kube

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// An Image is in a file, ready for a node or a registry.
type Image struct {
	Name    string // in full: docker.io/library/chandler:latest
	Archive string // a docker-archive, uncompressed
}

// A Recipe says how an image is built.
type Recipe struct {
	Name       string            // in full, with registry and tag
	Dockerfile string            // its path
	Files      map[string]string // the build context: where a file or folder is, by its name there
	Args       map[string]string // build arguments
	Base       *Image            // what the build argument BASE names, if there is one
}

// Build builds the image by buildah, unless there is one of the same ingredients
// from before. Only what is in Files can be copied into it, and commands that
// its Dockerfile runs have no network that would help them.
func Build(ctx context.Context, cfg Config, r Recipe) (Image, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Image{}, err
	}
	image, err := build(ctx, cfg, r)
	if err != nil {
		return Image{}, fmt.Errorf("build image %s: %w", r.Name, err)
	}
	return image, nil
}

func build(ctx context.Context, cfg Config, r Recipe) (Image, error) {
	key, err := r.key()
	if err != nil {
		return Image{}, err
	}
	return made(cfg, r.Name, key, func(archive string) error {
		work := archive + ".work"
		defer os.RemoveAll(work)
		content := filepath.Join(work, "content")
		if err := os.MkdirAll(content, 0o755); err != nil {
			return err
		}
		for name, path := range r.Files {
			if err := copyTree(filepath.Join(content, name), path); err != nil {
				return err
			}
		}
		args := []string{"build-using-dockerfile", "--quiet", "--isolation=chroot", "--timestamp=0", "--pull-never",
			"--ignorefile=" + os.DevNull, "--file=" + r.Dockerfile, "--tag=" + r.Name}
		if r.Base != nil {
			if err := buildah(ctx, work, "pull", "--quiet", "docker-archive:"+r.Base.Archive); err != nil {
				return err
			}
			args = append(args, "--build-arg=BASE="+r.Base.Name)
		}
		for name, value := range r.Args {
			args = append(args, "--build-arg="+name+"="+value)
		}
		if err := buildah(ctx, work, append(args, content)...); err != nil {
			return err
		}
		return buildah(ctx, work, "push", "--quiet", r.Name, "docker-archive:"+archive+":"+r.Name)
	})
}

// buildah runs it with its images and containers in a folder of its own.
func buildah(ctx context.Context, work string, args ...string) error {
	return quiet(exec.CommandContext(ctx, "buildah", slices.Concat([]string{
		"--root", filepath.Join(work, "store"), "--runroot", filepath.Join(work, "run"), "--storage-driver", "vfs"}, args)...))
}

// key is a digest of all that the image is made of.
func (r Recipe) key() (string, error) {
	h := sha256.New()
	add := func(name, top string) error {
		fmt.Fprintln(h, name)
		top, err := filepath.EvalSymlinks(top)
		if err != nil {
			return err
		}
		return filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return hashFile(h, strings.TrimPrefix(path, top), path)
		})
	}
	if err := add(r.Name, r.Dockerfile); err != nil {
		return "", err
	}
	for _, name := range slices.Sorted(maps.Keys(r.Files)) {
		if err := add(name, r.Files[name]); err != nil {
			return "", err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Args)) {
		fmt.Fprintln(h, name, r.Args[name])
	}
	if r.Base != nil {
		fmt.Fprintln(h, r.Base.Name, filepath.Base(r.Base.Archive)) // which has its key in its name
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// hashFile writes to h what an image would have of a file, folder or symbolic link.
func hashFile(h io.Writer, name, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	fmt.Fprintln(h, name, info.Mode())
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		to, err := os.Readlink(path)
		fmt.Fprintln(h, to)
		return err
	case info.Mode().IsRegular():
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		fmt.Fprintln(h, info.Size())
		_, err = io.Copy(h, f)
		return err
	}
	return nil
}

// made is the image with that key from before, or what create puts at the path
// that it is given. One process at a time makes images. Older ones of the same
// name are removed.
func made(cfg Config, name, key string, create func(archive string) error) (Image, error) {
	dir := filepath.Join(cfg.Cache, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Image{}, err
	}
	lock, err := os.Create(filepath.Join(dir, ".lock"))
	if err != nil {
		return Image{}, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return Image{}, err
	}
	stem := strings.NewReplacer("/", "_", ":", "_").Replace(name)
	image := Image{Name: name, Archive: filepath.Join(dir, stem+"-"+key[:16]+".tar")}
	if _, err := os.Stat(image.Archive); err == nil {
		return image, nil
	}
	partial := image.Archive + ".partial"
	left, _ := filepath.Glob(filepath.Join(dir, "*.partial*")) // the pattern is good
	for _, path := range left {
		os.RemoveAll(path) // of a build that was killed
	}
	if err := create(partial); err != nil {
		os.Remove(partial)
		return Image{}, err
	}
	old, _ := filepath.Glob(filepath.Join(dir, stem+"-*.tar")) // the pattern is good
	for _, path := range old {
		os.Remove(path) // only room is lost if it stays
	}
	return image, os.Rename(partial, image.Archive)
}

// copyTree copies a file, or a folder with the symbolic links in it as such.
func copyTree(to, from string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.CopyFS(to, os.DirFS(from))
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// systemImages are those that a node needs before any pod of a test.
func systemImages(ctx context.Context, cfg Config) ([]Image, error) {
	var all []Image
	for _, name := range []string{"pause", "coredns"} {
		image, err := own(ctx, cfg, name, "localhost/"+name+":test", nil, map[string]string{name: filepath.Join(cfg.Programs, name)})
		if err != nil {
			return nil, err
		}
		all = append(all, image)
	}
	return all, nil
}

// own builds one of the images whose Dockerfiles are in images/.
func own(ctx context.Context, cfg Config, folder, name string, base *Image, content map[string]string) (Image, error) {
	root, err := repository()
	if err != nil {
		return Image{}, err
	}
	return Build(ctx, cfg, Recipe{
		Name: name, Dockerfile: filepath.Join(root, "test", "kube", "images", folder, "Dockerfile"), Base: base, Files: content,
	})
}

// Base is a Debian with a shell, curl, busybox and the usual certificate
// authorities, made by mmdebstrap from the machine's own mirror: what images for tests start
// from.
func Base(ctx context.Context, cfg Config) (Image, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Image{}, err
	}
	release, err := exec.CommandContext(ctx, "sh", "-c", `. /etc/os-release && echo "$VERSION_CODENAME"`).Output()
	if err != nil {
		return Image{}, fmt.Errorf("find Debian's release: %w", err)
	}
	suite := string(bytes.TrimSpace(release))
	args := []string{"--quiet", "--mode=root", "--format=tar", "--variant=essential", "--include=curl,ca-certificates,busybox-static",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*", suite}
	key := sha256.Sum256([]byte(strings.Join(args, " ")))
	rootfs, err := made(cfg, "rootfs", hex.EncodeToString(key[:]), func(archive string) error {
		return quiet(exec.CommandContext(ctx, "mmdebstrap", append(args, archive)...))
	})
	if err != nil {
		return Image{}, fmt.Errorf("make root file system: %w", err)
	}
	return own(ctx, cfg, "base", "localhost/base:test", nil, map[string]string{"rootfs.tar": rootfs.Archive})
}

// Curl stands for curlimages/curl.
func Curl(ctx context.Context, cfg Config) (Image, error) {
	base, err := Base(ctx, cfg)
	if err != nil {
		return Image{}, err
	}
	root, err := repository()
	if err != nil {
		return Image{}, err
	}
	return own(ctx, cfg, "curl", "docker.io/curlimages/curl:latest", &base,
		map[string]string{"entrypoint.sh": filepath.Join(root, "test", "kube", "images", "curl", "entrypoint.sh")})
}

// Chandler is the image chandler, of deploy/Dockerfile, with that binary.
func Chandler(ctx context.Context, cfg Config, binary string) (Image, error) {
	root, err := repository()
	if err != nil {
		return Image{}, err
	}
	return Build(ctx, cfg, Recipe{
		Name:       "docker.io/library/chandler:latest",
		Dockerfile: filepath.Join(root, "deploy", "Dockerfile"),
		Files: map[string]string{
			"bin/chandler":            binary,
			"bin/ca-certificates.crt": "/etc/ssl/certs/ca-certificates.crt",
			"deploy/rootfs":           filepath.Join(root, "deploy", "rootfs"),
		},
	})
}

// ChandlerProxy is the image chandler-proxy, of deploy/proxy.Dockerfile on
// [Base], with that binary and that Envoy.
func ChandlerProxy(ctx context.Context, cfg Config, binary, envoy string) (Image, error) {
	base, err := Base(ctx, cfg)
	if err != nil {
		return Image{}, err
	}
	root, err := repository()
	if err != nil {
		return Image{}, err
	}
	return Build(ctx, cfg, Recipe{
		Name:       "docker.io/library/chandler-proxy:latest",
		Dockerfile: filepath.Join(root, "deploy", "proxy.Dockerfile"),
		Files:      map[string]string{"bin/chandler": binary, "bin/envoy": envoy},
		Base:       &base,
	})
}

// Backend is the demo's services: under the name of httpbin's image, which it
// is at port 80 unless its arguments say `productpage :9080`.
func Backend(ctx context.Context, cfg Config) (Image, error) {
	dir, err := os.MkdirTemp("", "backend-")
	if err != nil {
		return Image{}, err
	}
	defer os.RemoveAll(dir)
	root, err := repository()
	if err != nil {
		return Image{}, err
	}
	program := filepath.Join(dir, "backend")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w",
		"-o", program, "./test/kube/images/backend")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := quiet(cmd); err != nil {
		return Image{}, err
	}
	return own(ctx, cfg, "backend", "docker.io/kennethreitz/httpbin:latest", nil, map[string]string{"backend": program})
}
