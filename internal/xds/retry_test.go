package xds

import (
	"testing"
	"time"
)

// TestRetry: what a client refused is sent again, when anything of its type changes
// and now and then by itself.
func TestRetry(t *testing.T) {
	// refuse nacks the last response of the type, and acks all before it.
	refuse := func(c *client, typ string) {
		c.t.Helper()
		r := c.last[typ]
		for _, other := range c.unacked {
			if other != r {
				c.ack(other)
			}
		}
		c.unacked = nil
		c.nack(r, "address already in use")
	}
	stands := func(c *client, typ string, want bool) {
		c.t.Helper()
		d := c.s.watches[short[typ]].nacked()
		if (d != nil) != want || d != nil && d.err != "address already in use" {
			c.t.Errorf("refusal of %s = %+v, want one: %v", typ, d, want)
		}
	}
	// pause lets time pass until the session wants to be asked again.
	pause := func(c *client) time.Duration {
		c.t.Helper()
		c.want()
		if c.wake.IsZero() {
			c.t.Fatal("the session does not want to be asked again")
		}
		took := c.wake.Sub(c.now)
		c.now = c.wake
		return took
	}
	for _, tt := range []struct {
		name string
		only string // delta, world or both
		run  func(c *client)
	}{
		{"by itself, after pauses that grow, until it is accepted", "", func(c *client) {
			c.publish("lds l=1")
			c.request(request{typeURL: "lds"})
			c.want("lds l=1")
			refuse(c, "lds")
			for _, want := range []time.Duration{10, 20, 40, 80, 160, 300, 300, 300} {
				want *= time.Second
				if took := pause(c); took < want*4/5 || took > want*6/5 {
					c.t.Errorf("pause of %v, want about %v", took, want)
				}
				stands(c, "lds", true)
				c.want("lds l=1")
				stands(c, "lds", true)
				c.now = c.now.Add(time.Hour) // nothing more before the answer
				c.want()
				refuse(c, "lds")
			}
			pause(c)
			c.want("lds l=1")
			c.ackAll()
			stands(c, "lds", false)
			c.wantExchange()
			c.publish("lds l=2")
			c.want("lds l=2")
			refuse(c, "lds")
			if took := pause(c); took > 12*time.Second {
				c.t.Errorf("pause of %v after one that was accepted", took)
			}
		}},
		{"with the next change of its type, each time", "delta", func(c *client) {
			c.publish("cds a=1; lds l=1 m=1")
			c.start()
			c.publish("cds a=1; lds l=2 m=1")
			c.want("lds l=2")
			refuse(c, "lds")
			c.publish("cds a=2; lds l=2 m=1")
			c.want("cds a=2")
			c.ackAll()
			for _, m := range []string{"2", "3", "4"} {
				c.publish("cds a=2; lds l=2 m=" + m)
				c.want("lds m="+m, "lds l=2")
				refuse(c, "lds")
				stands(c, "lds", true)
			}
			if took := pause(c); took > 12*time.Second {
				c.t.Errorf("pause of %v, though it was never sent again by itself", took)
			}
			c.want("lds l=2")
			c.ackAll()
			c.publish("cds a=2; lds l=2 m=5")
			c.wantExchange("lds m=5")
		}},
		{"with the next change of its type", "world", func(c *client) {
			c.publish("lds l=1; rds r=1 s=1")
			c.start("rds r")
			c.publish("lds l=1; rds r=2 s=1")
			c.want("rds r=2")
			refuse(c, "rds")
			c.publish("lds l=1; rds r=2 s=2") // s is none of this client's
			c.want("rds r=2")
			stands(c, "rds", true)
			c.ackAll()
			stands(c, "rds", false)
			c.publish("lds l=1; rds r=2 s=3")
			c.wantExchange()
		}},
		{"a change on the way of one that is sent again has it sent once more", "delta", func(c *client) {
			c.publish("lds l=1")
			c.request(request{typeURL: "lds"})
			c.want("lds l=1")
			refuse(c, "lds")
			pause(c)
			c.want("lds l=1")
			c.publish("lds l=1 m=1")
			c.want("lds m=1")
			c.ack(c.last["lds"])
			c.nack(c.unacked[0], "address already in use")
			c.unacked = nil
			c.want("lds l=1")
			refuse(c, "lds")
			pause(c)
		}},
		{"what goes makes room: it is removed first", "delta", func(c *client) {
			c.publish("lds a=1")
			c.start()
			c.publish("lds a=1 b=1")
			c.want("lds b=1")
			refuse(c, "lds")
			c.publish("lds b=1")
			c.want("lds -a", "lds b=1")
		}},
		{"only what is still the newest of the refused response", "delta", func(c *client) {
			c.publish("lds a=1 b=1 c=1 d=1")
			c.subscribe("lds", "a", "b", "c", "d")
			c.want("lds a=1 b=1 c=1 d=1")
			refuse(c, "lds")
			c.request(request{typeURL: "lds", unsubscribe: []string{"d"}})
			c.publish("lds a=1 b=2")
			c.want("lds b=2 -c", "lds a=1")
			c.ackAll()
			stands(c, "lds", false)
			c.wantExchange()
		}},
		{"a refused route that is gone does not keep itself", "delta", func(c *client) {
			c.publish("rds r=1")
			c.request(request{typeURL: "rds", subscribe: []string{"r"}})
			c.want("rds r=1")
			refuse(c, "rds")
			c.publish("")
			c.wantExchange("rds -r")
			stands(c, "rds", false)
		}},
		{"nothing of what is gone", "delta", func(c *client) {
			c.publish("lds a=1")
			c.request(request{typeURL: "lds"})
			c.want("lds a=1")
			refuse(c, "lds")
			c.publish("")
			c.wantExchange("lds -a")
		}},
		{"a refused cluster waits for its endpoints again", "delta", func(c *client) {
			c.publish("cds a=1; eds a=1")
			c.start("eds a")
			c.publish("cds a=2; eds a=1")
			c.want("cds a=2", "eds a=1")
			refuse(c, "cds")
			pause(c)
			c.want("cds a=2", "eds a=1")
		}},
		{"clusters are not removed under a refused listener that is sent again", "", func(c *client) {
			c.publish("cds old=1; lds l=1")
			c.start()
			c.publish("cds new=1; lds l=2")
			c.read()
			c.ack(c.last["cds"])
			c.unacked = nil
			c.read()
			refuse(c, "lds")
			pause(c)
			c.want("lds l=2")
			c.now = c.now.Add(time.Hour)
			c.want()
			c.ackAll()
			c.now = c.now.Add(settle)
			if c.s.delta {
				c.want("cds -old")
			} else {
				c.want("cds new=1")
			}
		}},
		{"a refused listener waits for changed clusters, as every listener", "delta", func(c *client) {
			c.publish("cds a=1; lds l=1")
			c.start()
			c.publish("cds a=1; lds l=2")
			c.want("lds l=2")
			refuse(c, "lds")
			c.publish("cds a=2; lds l=2 m=1")
			c.want("cds a=2")
			c.ackAll()
			c.want("lds m=1", "lds l=2")
		}},
		{"extensions, endpoints and secrets are not", "", func(c *client) {
			c.publish("eds e=1; sds s=1; ecds x=1")
			for _, typ := range []string{"eds e", "sds s", "ecds x"} {
				c.request(request{typeURL: typ[:len(typ)-2], subscribe: []string{typ[len(typ)-1:]}, names: []string{typ[len(typ)-1:]}})
			}
			c.want("eds e=1", "sds s=1", "ecds x=1")
			for _, typ := range []string{"eds", "sds", "ecds"} {
				c.nack(c.last[typ], "address already in use")
			}
			c.unacked = nil
			c.wantExchange()
			c.publish("eds e=1 f=1; sds s=1 t=1; ecds x=1 y=1")
			c.wantExchange()
		}},
	} {
		for variant, delta := range map[string]bool{"delta": true, "world": false} {
			if tt.only == "" || tt.only == variant {
				t.Run(variant+"/"+tt.name, func(t *testing.T) { tt.run(newClient(t, delta)) })
			}
		}
	}
}

// TestRetryPauses: of many clients that refuse the same not all are sent to at once.
func TestRetryPauses(t *testing.T) {
	at := make(map[time.Time]bool)
	for _, prefix := range []string{"1.", "2.", "3.", "4.", "5."} {
		d := &delivery{nonce: prefix + "7", since: time.Unix(1_000_000, 0), state: Nacked}
		at[d.retryAt()] = true
	}
	if len(at) < 4 {
		t.Errorf("five clients are sent to at %d times", len(at))
	}
}
