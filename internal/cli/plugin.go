package cli

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/chandler-proxy/chandler/internal/agent"
	"github.com/chandler-proxy/chandler/internal/artifact"
	"github.com/chandler-proxy/chandler/internal/fetch"
	"github.com/chandler-proxy/chandler/internal/fetch/oci"
	"github.com/chandler-proxy/chandler/internal/module"
)

// defaultModule is where build leaves a plugin's module, in the plugin's folder, and
// push takes it from.
const defaultModule = "build/plugin.wasm"

func (c *command) plugin() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plugin",
		Short: "Begin, build, test, try, publish and inspect plugins",
		Long: `plugin takes a plugin from its first line to a registry: init begins one, build calls
the compiler of its language, test runs its tests without a proxy, dev serves with it while
you work on it, push puts it where proxies get it from. inspect and pull read what is there.`,
		Example: `  chandler plugin init --lang go hello
  chandler plugin build hello
  chandler plugin test hello
  chandler plugin dev hello
  chandler plugin push localhost:5055/hello:v1 hello/build/plugin.wasm`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(c.pluginInit(), c.pluginBuild(), c.pluginTest(), c.pluginDev(), c.pluginInspect(), c.pluginPush(), c.pluginPull())
	return cmd
}

// registryFlags say how to reach registries. The verbs push, pull and inspect share
// them.
type registryFlags struct {
	insecure []string
	username string
	stdin    bool
	authFile string
	timeout  time.Duration
}

func (f *registryFlags) add(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.insecure, "insecure-registries", nil, "`HOST,...` to ask in plain text or with any certificate, * for all (default: $WASM_INSECURE_REGISTRIES)")
	flags.StringVar(&f.username, "username", "", "`NAME` at the registry (default: as docker or podman login left it)")
	flags.BoolVar(&f.stdin, "password-stdin", false, "read the password of --username from standard input")
	flags.StringVar(&f.authFile, "authfile", "", "`FILE` with credentials, as podman login writes it (default: $REGISTRY_AUTH_FILE, then docker's and podman's files)")
	flags.DurationVar(&f.timeout, "timeout", 5*time.Minute, "how long one try may take, a `DURATION`")
}

// client makes the client that the flags, and the agent's environment variables, ask
// for.
func (f *registryFlags) client(c *command) (*artifact.Client, error) {
	env, err := agent.ConfigFromEnv(c.env.Lookup, agent.Config{})
	if err != nil {
		return nil, err
	}
	cfg := artifact.Config{
		Insecure:  fetch.Hosts(env.InsecureRegistries),
		Blocked:   env.BlockedCIDRs,
		Keychain:  oci.Keychain(f.authFile, c.env.Lookup),
		MaxModule: env.MaxModule,
		Tries:     env.FetchTries,
		Timeout:   f.timeout,
	}
	if terminal(c.env.Stderr) {
		cfg.Waiting = func(err error, wait time.Duration) {
			fmt.Fprintf(c.env.Stderr, "\r\x1b[K%v; trying again in %v\n", err, wait.Round(100*time.Millisecond))
		}
	}
	if len(f.insecure) > 0 {
		cfg.Insecure = f.insecure
	}
	switch {
	case f.stdin != (f.username != ""):
		return nil, misuse{errors.New("--username and --password-stdin go together")}
	case f.stdin && f.authFile != "":
		return nil, misuse{errors.New("--authfile does not go together with --username")}
	}
	if f.stdin {
		password, err := readPassword(c.env.Stdin)
		if err != nil {
			return nil, err
		}
		cfg.Keychain = login{authn.FromConfig(authn.AuthConfig{Username: f.username, Password: password})}
	}
	return artifact.NewClient(cfg), nil
}

// readPassword reads one line.
func readPassword(r io.Reader) (string, error) {
	if r == nil {
		r = strings.NewReader("")
	}
	line, err := bufio.NewReader(io.LimitReader(r, 64<<10)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("read password: %w", err)
	}
	password := strings.TrimRight(line, "\r\n")
	if password == "" {
		return "", errors.New("read password: there is none on standard input")
	}
	return password, nil
}

// A login is a keychain with one key, for whichever registry is asked.
type login struct{ authn.Authenticator }

func (l login) Resolve(authn.Resource) (authn.Authenticator, error) { return l.Authenticator, nil }

// explain adds to an error about a reference what its user can do.
func (f *registryFlags) explain(ref module.Ref, err error) error {
	e, ok := errors.AsType[*fetch.Error](err)
	lookup, unknown := errors.AsType[*net.DNSError](err)
	_, distrusted := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case !ok:
		return err
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w; is the registry running, and is that its port?", err)
	case distrusted, errors.Is(err, http.ErrSchemeMismatch): // which say WASM_INSECURE_REGISTRIES
		return fmt.Errorf("%w or --insecure-registries", err)
	case unknown && lookup.IsNotFound && !dockerHub(ref):
		return fmt.Errorf("%w; is the registry's name right?", err)
	case e.Kind == fetch.Denied && f.username != "":
		return fmt.Errorf("%w; %s and that password do not open it", err, f.username)
	case e.Kind == fetch.Denied:
		return fmt.Errorf("%w; to give credentials, use docker login, podman login, --authfile or --username", err)
	case ref.Scheme() == module.OCI && dockerHub(ref):
		return fmt.Errorf("%w; %s names no registry, so Docker Hub was asked: want REGISTRY/REPOSITORY:TAG", err, ref)
	}
	return err
}

// dockerHub says whether a reference leads to Docker Hub because it names no registry.
func dockerHub(ref module.Ref) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(ref.String(), "oci://"), "/")
	image, err := name.ParseReference(ref.Target())
	return err == nil && image.Context().RegistryStr() == name.DefaultRegistry && !strings.Contains(first, "docker.")
}

// terminal says whether somebody watches what is written to w.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// parseRef reads an argument that must be a reference.
func parseRef(text string) (module.Ref, error) {
	ref, err := module.ParseRef(text, "")
	if err != nil {
		return ref, misuse{err}
	}
	return ref, nil
}

// checked says what is in a module; one that Envoy would refuse is an error unless it
// is forced, one that is not Wasm always is.
func (c *command) checked(name string, wasm []byte, force bool) (module.Info, error) {
	info, err := artifact.Check(wasm)
	if err == nil {
		return info, nil
	}
	err = fmt.Errorf("%s: %w", name, err)
	if _, ok := errors.AsType[*artifact.RefusedError](err); !ok {
		return info, err
	}
	if !force {
		return info, fmt.Errorf("%w (if you know better, use --force)", err)
	}
	fmt.Fprintf(c.env.Stderr, "chandler: warning: %v\n", err)
	return info, nil
}

// argsBetween refuses fewer or more arguments than these; usage says what they are.
func argsBetween(least, most int, usage string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return misuse{fmt.Errorf("%s wants %s, got %d arguments", cmd.CommandPath(), usage, len(args))}
		}
		return nil
	}
}
