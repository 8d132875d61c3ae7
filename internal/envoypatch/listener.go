package envoypatch

import (
	"fmt"
	"iter"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	api "istio.io/api/networking/v1alpha3"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

const (
	hcmName    = "envoy.filters.network.http_connection_manager"
	hcmType    = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
	tcpType    = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
	routerType = "envoy.extensions.filters.http.router.v3.Router"
)

// listeners returns list with p applied to the listeners it matches and to what
// is in them.
func (p *patch) listeners(list []*listenerv3.Listener, role mesh.Role) ([]*listenerv3.Listener, error) {
	if p.applyTo == api.EnvoyFilter_LISTENER && p.op == api.EnvoyFilter_Patch_ADD {
		return p.addListener(list, role)
	}
	return each(list, func(l *listenerv3.Listener) (*listenerv3.Listener, error) {
		if !p.inContext(role, isInbound(l)) || !p.matchesListener(l) {
			return l, nil
		}
		if p.applyTo == api.EnvoyFilter_LISTENER && p.op == api.EnvoyFilter_Patch_REMOVE {
			return nil, nil
		}
		return changed(l, func(l *listenerv3.Listener) (bool, error) { return p.editListener(l, role) })
	})
}

// addListener refuses an address that another listener has, bound or not: Envoy
// would too.
func (p *patch) addListener(list []*listenerv3.Listener, role mesh.Role) ([]*listenerv3.Listener, error) {
	if !p.forRole(role) {
		return list, nil
	}
	value := p.value.(*listenerv3.Listener)
	for _, l := range list {
		if value.GetAddress() != nil && proto.Equal(l.GetAddress(), value.GetAddress()) {
			r := refuse("%s has that address already", describe(l)).or("choose another port")
			r.field = ".patch.value.address"
			return nil, r
		}
	}
	return appended(list, p)
}

// editListener changes l, which matches, and reports whether it did.
func (p *patch) editListener(l *listenerv3.Listener, role mesh.Role) (ok bool, err error) {
	switch p.applyTo {
	case api.EnvoyFilter_LISTENER:
		merge(l.ProtoReflect(), p.value.ProtoReflect(), p.replaceLists())
		return true, nil
	case api.EnvoyFilter_LISTENER_FILTER:
		want := p.match.GetListener().GetListenerFilter()
		l.ListenerFilters, ok, err = edit(p, l.ListenerFilters, list[*listenerv3.ListenerFilter]{
			selects: want != "",
			match:   func(f *listenerv3.ListenerFilter) bool { return sameFilter(listenerLayer, want, f.GetName()) },
		})
		return ok, err
	case api.EnvoyFilter_FILTER_CHAIN:
		return p.editChains(l)
	}
	for c := range chains(l) {
		if p.isForRoutes() || p.matchesChain(l, c) {
			changed, err := p.editFilters(c, l, role)
			if err != nil {
				return false, fmt.Errorf("%s: %w", describe(l), err)
			}
			ok = ok || changed
		}
	}
	return ok, nil
}

// chains yields l's filter chains, the default one last.
func chains(l *listenerv3.Listener) iter.Seq[*listenerv3.FilterChain] {
	return func(yield func(*listenerv3.FilterChain) bool) {
		for _, c := range l.GetFilterChains() {
			if !yield(c) {
				return
			}
		}
		if c := l.GetDefaultFilterChain(); c != nil {
			yield(c)
		}
	}
}

// editChains applies p to the filter chains themselves.
func (p *patch) editChains(l *listenerv3.Listener) (bool, error) {
	switch p.op {
	case api.EnvoyFilter_Patch_ADD:
		return true, p.addChain(l)
	case api.EnvoyFilter_Patch_REMOVE:
		before := len(slices.Collect(chains(l)))
		l.FilterChains = slices.DeleteFunc(l.FilterChains, func(c *listenerv3.FilterChain) bool { return p.matchesChain(l, c) })
		if c := l.GetDefaultFilterChain(); c != nil && p.matchesChain(l, c) {
			l.DefaultFilterChain = nil
		}
		after := len(slices.Collect(chains(l)))
		if after == 0 && before > 0 {
			return false, refuse("%s would be left without a filter chain", describe(l)).or("remove the LISTENER instead")
		}
		return after != before, nil
	}
	ok := false
	for c := range chains(l) {
		if p.matchesChain(l, c) {
			ok = true
			if err := p.mergeChain(c); err != nil {
				return false, fmt.Errorf("%s: %w", describe(l), err)
			}
		}
	}
	return ok, nil
}

// addChain refuses the match of another chain, as Envoy would, and its name, by
// which later patches could not tell them apart.
func (p *patch) addChain(l *listenerv3.Listener) error {
	value := proto.Clone(p.value).(*listenerv3.FilterChain)
	for _, c := range l.GetFilterChains() {
		if value.GetName() != "" && c.GetName() == value.GetName() {
			return refuse("%s has %s already", describe(l), describe(c)).or("give it another name, or use MERGE")
		}
		if proto.Equal(orEmpty(c.GetFilterChainMatch()), orEmpty(value.GetFilterChainMatch())) {
			return refuse("%s has a filter chain with that filter_chain_match already", describe(l)).or("match something else, or use MERGE")
		}
	}
	l.FilterChains = append(l.FilterChains, value)
	return nil
}

func orEmpty(m *listenerv3.FilterChainMatch) *listenerv3.FilterChainMatch {
	if m == nil {
		return new(listenerv3.FilterChainMatch)
	}
	return m
}

func (p *patch) mergeChain(c *listenerv3.FilterChain) error {
	value := proto.Clone(p.value).(*listenerv3.FilterChain)
	socket, err := mergeSocket(c.GetTransportSocket(), value.GetTransportSocket())
	if err != nil {
		return err
	}
	c.TransportSocket, value.TransportSocket = socket, nil
	merge(c.ProtoReflect(), value.ProtoReflect(), p.replaceLists())
	return nil
}

// mergeSocket returns a with b merged in, or b where they are different transport sockets.
func mergeSocket(a, b *corev3.TransportSocket) (*corev3.TransportSocket, error) {
	if b == nil {
		return a, nil
	}
	if a == nil || a.GetName() != b.GetName() {
		return b, nil
	}
	return a, mergeNamed(a, b)
}

// editFilters applies p to the network filters of a chain, or to what is in
// them. Route configurations take no match of a listener.
func (p *patch) editFilters(c *listenerv3.FilterChain, l *listenerv3.Listener, role mesh.Role) (ok bool, err error) {
	want := p.match.GetListener().GetFilterChain().GetFilter().GetName()
	match := func(f *listenerv3.Filter) bool { return sameFilter(networkLayer, want, f.GetName()) }
	if p.applyTo == api.EnvoyFilter_NETWORK_FILTER {
		c.Filters, ok, err = edit(p, c.Filters, list[*listenerv3.Filter]{selects: want != "", match: match, terminal: isTerminal})
		return ok, err
	}
	for _, f := range c.GetFilters() {
		if bare(f.GetTypedConfig().GetTypeUrl()) != hcmType || want != "" && !match(f) {
			continue
		}
		changed, err := p.editHCM(f, isInbound(l), role)
		if err != nil {
			return false, err
		}
		ok = ok || changed
	}
	return ok, nil
}

func isTerminal(f *listenerv3.Filter) bool {
	t := configType(f.GetTypedConfig())
	return t == hcmType || t == tcpType
}

func isRouter(f *hcmv3.HttpFilter) bool {
	return configType(f.GetTypedConfig()) == routerType || canonical(httpLayer, f.GetName()) == "envoy.filters.http.router"
}

// editHCM decodes the HTTP connection manager in f, changes it, and encodes it
// again if that changed anything.
func (p *patch) editHCM(f *listenerv3.Filter, inbound bool, role mesh.Role) (ok bool, err error) {
	hcm := new(hcmv3.HttpConnectionManager)
	if err := f.GetTypedConfig().UnmarshalTo(hcm); err != nil {
		return false, fmt.Errorf("decode %s: %w", describe(f), err)
	}
	next, err := changed(hcm, func(hcm *hcmv3.HttpConnectionManager) (bool, error) {
		if p.isForRoutes() {
			return p.editInlineRoutes(hcm, inbound, role)
		}
		ok, err := p.editHTTPFilters(hcm)
		return ok, err
	})
	if err != nil || next == hcm {
		return false, err
	}
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, next, proto.MarshalOptions{Deterministic: true}); err != nil {
		return false, fmt.Errorf("encode %s: %w", describe(f), err)
	}
	f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: a}
	return true, nil
}

func (p *patch) editHTTPFilters(hcm *hcmv3.HttpConnectionManager) (ok bool, err error) {
	sub := p.match.GetListener().GetFilterChain().GetFilter().GetSubFilter().GetName()
	hcm.HttpFilters, ok, err = edit(p, hcm.HttpFilters, list[*hcmv3.HttpFilter]{
		selects:  sub != "",
		match:    func(f *hcmv3.HttpFilter) bool { return sameFilter(httpLayer, sub, f.GetName()) },
		terminal: isRouter,
	})
	return ok, err
}

// A filterConfig is any of Envoy's three kinds of filter.
type filterConfig interface {
	proto.Message
	GetName() string
	GetTypedConfig() *anypb.Any
}

// A list says how a patch finds its way in a list of filters.
type list[F any] struct {
	selects  bool         // match is to be asked: the patch names a filter
	match    func(F) bool // is f the filter that the patch names
	terminal func(F) bool // has to be the last of the list; nil if none has
}

// edit returns filters with p applied, and whether that changed anything.
func edit[F filterConfig](p *patch, filters []F, in list[F]) ([]F, bool, error) {
	value, _ := p.value.(F)
	switch p.op {
	case api.EnvoyFilter_Patch_REMOVE:
		out := slices.DeleteFunc(slices.Clone(filters), in.match)
		return out, len(out) != len(filters), nil
	case api.EnvoyFilter_Patch_REPLACE:
		match := in.match
		if !in.selects {
			match = func(f F) bool { return f.GetName() == value.GetName() }
		}
		i := slices.IndexFunc(filters, match)
		if i < 0 {
			return filters, false, nil
		}
		out := slices.Clone(filters)
		out[i] = proto.Clone(value).(F)
		return out, true, nil
	case api.EnvoyFilter_Patch_MERGE:
		return mergeFilters(filters, value, in)
	}
	return insert(p, filters, value, in)
}

// mergeFilters merges value into the filters that match or, where the patch
// names none, into those of its type.
func mergeFilters[F filterConfig](filters []F, value F, in list[F]) ([]F, bool, error) {
	match := in.match
	if !in.selects {
		want := configType(value.GetTypedConfig())
		match = func(f F) bool { return configType(f.GetTypedConfig()) == want }
	}
	ok := false
	for _, f := range filters {
		if !match(f) {
			continue
		}
		if err := mergeNamed(f, value); err != nil {
			return nil, false, err
		}
		ok = true
	}
	return filters, ok, nil
}

// insert puts value where p's operation says. ADD and INSERT_FIRST ask for no
// match, as in Istio; the others, without one, mean the list's ends.
func insert[F filterConfig](p *patch, filters []F, value F, in list[F]) ([]F, bool, error) {
	at := -1
	switch {
	case p.op == api.EnvoyFilter_Patch_INSERT_FIRST, p.op == api.EnvoyFilter_Patch_INSERT_BEFORE && !in.selects:
		at = 0
	case p.op == api.EnvoyFilter_Patch_ADD, p.op == api.EnvoyFilter_Patch_INSERT_AFTER && !in.selects:
		at = len(filters)
	default:
		if at = slices.IndexFunc(filters, in.match); at < 0 {
			return filters, false, nil
		}
		if p.op == api.EnvoyFilter_Patch_INSERT_AFTER {
			at++
		}
	}
	if in.terminal != nil {
		last := slices.IndexFunc(filters, in.terminal)
		if last >= 0 && in.terminal(value) {
			return nil, false, refuse("%s ends the filter chain, which has %s for that already", describe(value), describe(filters[last])).
				or("use REPLACE or MERGE")
		}
		if last >= 0 && at > last {
			at = last
		}
	}
	return slices.Insert(slices.Clone(filters), at, proto.Clone(value).(F)), true, nil
}

// replaceLists tells MERGE_AND_REPLACE_LIST from MERGE.
func (p *patch) replaceLists() bool { return p.op == api.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST }
