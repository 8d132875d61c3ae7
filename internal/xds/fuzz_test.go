package xds

import (
	"maps"
	"slices"
	"testing"
	"time"
)

// FuzzSession lets a client do anything, in any order, then behave: it must end
// with exactly what it wants of the newest snapshot, and nothing on the way may
// break the package's invariants.
func FuzzSession(f *testing.F) {
	f.Add(true, []byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09"))
	f.Add(false, []byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09"))
	f.Add(true, []byte{0, 200, 1, 2, 255, 4, 4, 0, 17, 5, 9, 6, 6, 0, 3, 1, 1, 77, 2, 0, 2, 3, 31, 4, 7, 4})
	f.Add(false, []byte{1, 0, 0, 0, 255, 255, 1, 3, 7, 4, 5, 0, 1, 1, 1, 1, 0, 0, 0, 4, 4, 2, 5, 8, 4})
	f.Fuzz(func(t *testing.T, delta bool, data []byte) {
		if len(data) > 400 {
			return
		}
		m := &model{t: t, c: newClient(t, delta), has: make(map[string]map[string]string), in: data}
		for len(m.in) > 0 {
			m.step()
		}
		m.settle()
	})
}

// A model is a client that remembers what it was sent, driven by bytes.
type model struct {
	t   *testing.T
	c   *client
	in  []byte
	has map[string]map[string]string // version by type URL and name

	open []*response // not answered; a client may answer them twice, or in any order
}

func (m *model) byte() int {
	if len(m.in) == 0 {
		return 0
	}
	b := m.in[0]
	m.in = m.in[1:]
	return int(b)
}

func (m *model) typeURL() string { return Types()[m.byte()%len(Types())] }

// names are some of a, b, c and the wildcard.
func (m *model) names() []string {
	var names []string
	bits := m.byte()
	for i, name := range []string{"a", "b", "c", wildcard} {
		if bits>>i&1 == 1 {
			names = append(names, name)
		}
	}
	return names
}

func (m *model) step() {
	switch m.byte() % 8 {
	case 0:
		m.c.publish(m.world())
	case 1, 2:
		m.subscribe()
	case 3:
		m.reconnect()
	case 4, 5:
		m.receive(1 + m.byte()%4)
	case 6:
		m.answer()
	case 7:
		m.c.now = m.c.now.Add(time.Duration(m.byte()) * 100 * time.Millisecond)
	}
	m.check()
}

// world is a snapshot with some of a, b, c of each type, in one of two versions.
func (m *model) world() string {
	text := ""
	for _, typeURL := range Types() {
		text += ";" + shortOf(typeURL)
		bits := m.byte()
		for i, name := range []string{"a", "b", "c"} {
			if bits>>i&1 == 1 {
				text += " " + name + "=" + string('0'+rune(bits>>(3+i)&1))
			}
		}
	}
	return text
}

func (m *model) subscribe() {
	r := request{typeURL: m.typeURL()}
	if m.c.s.delta {
		r.subscribe, r.unsubscribe = m.names(), m.names()
	} else {
		r.names = m.names()
		if w := m.c.s.watches[r.typeURL]; w != nil && w.last != nil {
			r.nonce = w.last.nonce
		}
	}
	m.request(r)
}

// reconnect is a new stream, on which the client says what it has.
func (m *model) reconnect() {
	c := newClient(m.t, m.c.s.delta)
	c.now, c.snap = m.c.now, m.c.snap
	c.s.prefix = m.c.s.prefix + "."
	if m.byte()%2 == 0 && c.snap != nil {
		c.s.offer(c.snap)
	}
	m.c, m.open = c, nil
	for typeURL, has := range m.has {
		r := request{typeURL: typeURL, initial: has}
		if bits := m.byte(); bits%3 > 0 {
			r.subscribe = slices.Sorted(maps.Keys(has))
			r.names = r.subscribe
		}
		if !c.s.delta && m.byte()%2 == 0 && maps.Equal(has, versions(c.snap.Resources(typeURL))) {
			r.version = c.snap.Version(typeURL)
		}
		m.request(r)
	}
}

// versions are those of resources, by name.
func versions(resources []*Resource) map[string]string {
	all := make(map[string]string)
	for _, res := range resources {
		all[res.Name] = res.Version
	}
	return all
}

func (m *model) request(r request) {
	m.c.request(r)
	w := m.c.s.watches[r.typeURL]
	for name := range m.has[r.typeURL] {
		// What it takes back and asks for in one request, it forgets between the two.
		anew := slices.Contains(r.unsubscribe, name) && (!w.wildcard || slices.Contains(r.subscribe, name))
		if !w.wants(name) || anew {
			delete(m.has[r.typeURL], name)
		}
	}
}

// receive takes up to n responses.
func (m *model) receive(n int) {
	for range n {
		r, _ := m.c.s.next(m.c.now)
		if r == nil {
			return
		}
		m.take(r)
	}
}

func (m *model) take(r *response) {
	w := m.c.s.watches[r.typeURL]
	m.open = append(m.open, r)
	has := m.has[r.typeURL]
	if has == nil {
		has = make(map[string]string)
		m.has[r.typeURL] = has
	}
	if m.c.s.delta && r.typeURL == ExtensionType && len(r.resources) > 1 {
		m.t.Fatalf("a response with %d extensions", len(r.resources))
	}
	if !m.c.s.delta && fullState(r.typeURL) {
		clear(has)
	}
	for _, res := range r.resources {
		if !w.wants(res.Name) {
			m.t.Fatalf("%s %s was sent and is not wanted", r.typeURL, res.Name)
		}
		if now := m.c.snap.set(r.typeURL).resources[res.Name]; now == nil && (m.c.s.delta || r.typeURL != ClusterType) || now != nil && now.Version != res.Version {
			m.t.Fatalf("%s %s was sent and is not the newest", r.typeURL, res.Name)
		}
		has[res.Name] = res.Version
	}
	for _, name := range r.removed {
		if _, ok := has[name]; ok && r.typeURL == ExtensionType {
			m.t.Fatalf("extension %s was removed under the client", name)
		}
		delete(has, name)
	}
}

// answer acks or refuses one of the responses, maybe not the first time.
func (m *model) answer() {
	if len(m.open) == 0 {
		return
	}
	r := m.open[m.byte()%len(m.open)]
	if m.byte()%3 == 0 {
		m.c.nack(r, "no")
	} else {
		m.c.ack(r)
	}
}

func (m *model) check() {
	names := 0
	for _, w := range m.c.s.watches {
		names += len(w.names)
		if len(w.sent) > len(w.have)+1 {
			m.t.Fatalf("%s: %d responses are remembered for %d resources", w.typeURL, len(w.sent), len(w.have))
		}
		newest := 0
		for _, d := range w.sent {
			newest += d.newest
		}
		in := 0
		for _, h := range w.have {
			if h.in != nil {
				in++
			}
		}
		if newest != in {
			m.t.Fatalf("%s: %d resources counted in responses, %d there", w.typeURL, newest, in)
		}
	}
	if names != m.c.s.names {
		m.t.Fatalf("%d names counted, %d there", m.c.s.names, names)
	}
}

// settle is a client that accepts everything, and compares.
func (m *model) settle() {
	m.c.publish(m.world())
	for quiet := 0; quiet < 3; {
		r, wake := m.c.s.next(m.c.now)
		if r != nil {
			quiet = 0
			m.take(r)
			m.c.ack(r)
			if len(m.open) > 10_000 {
				m.t.Fatal("the session sends without end")
			}
			continue
		}
		quiet++
		for _, w := range m.c.s.watches { // answer what is open, and heal what is not sent again
			for _, d := range w.sent {
				if d.state != Nacked || d.open || !retried(w.typeURL) {
					m.c.ack(&response{typeURL: w.typeURL, nonce: d.nonce, version: d.version})
				}
			}
		}
		if m.c.now = m.c.now.Add(settle); wake.After(m.c.now) {
			m.c.now = wake
		}
	}
	for typeURL, w := range m.c.s.watches {
		if d := w.nacked(); d != nil && d.newest > 0 {
			m.t.Fatalf("%s: %d resources are still refused", typeURL, d.newest)
		}
		want := make(map[string]string)
		for _, res := range m.c.snap.Resources(typeURL) {
			if w.wants(res.Name) {
				want[res.Name] = res.Version
			}
		}
		got := maps.Clone(m.has[typeURL])
		if typeURL == ExtensionType || !m.c.s.delta && !fullState(typeURL) { // these are never removed
			maps.DeleteFunc(got, func(name, _ string) bool { return want[name] == "" })
		}
		if !maps.Equal(want, got) {
			m.t.Fatalf("%s: the client has %v, want %v", typeURL, got, want)
		}
	}
}
