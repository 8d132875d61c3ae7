package gateway

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/chandler-proxy/chandler/internal/mesh"
)

// A condition keeps the time of its last change of status, and gets the
// generation it is about.
func TestConditions(t *testing.T) {
	before := metav1.NewTime(time.Date(2026, 8, 1, 11, 0, 0, 0, time.UTC))
	now := time.Date(2026, 8, 1, 12, 0, 0, 999, time.UTC)
	old := []metav1.Condition{
		{Type: "Accepted", Status: metav1.ConditionTrue, Reason: "Accepted", LastTransitionTime: before, ObservedGeneration: 1},
		{Type: "Programmed", Status: metav1.ConditionFalse, Reason: "Pending", LastTransitionTime: before, ObservedGeneration: 1},
		{Type: "example.com/Theirs", Status: metav1.ConditionTrue, Reason: "Theirs", LastTransitionTime: before, ObservedGeneration: 1},
	}
	c := conditions{old, 2, now}.clone()
	c.set("Accepted", true, "Accepted", "")
	c.set("Programmed", true, "Programmed", "")
	want := []metav1.Condition{
		{Type: "Accepted", Status: metav1.ConditionTrue, Reason: "Accepted", LastTransitionTime: before, ObservedGeneration: 2},
		{Type: "Programmed", Status: metav1.ConditionTrue, Reason: "Programmed", LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)), ObservedGeneration: 2},
		old[2],
	}
	if diff := cmp.Diff(want, c.list); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if old[0].ObservedGeneration != 1 {
		t.Error("the conditions that it was made of were changed")
	}
}

func TestClassStatus(t *testing.T) {
	class := &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Generation: 4}}
	got := ClassStatus(class, time.Now()).Conditions
	if len(got) != 1 || got[0].Type != "Accepted" || got[0].Status != metav1.ConditionTrue || got[0].ObservedGeneration != 4 {
		t.Errorf("conditions are %v, want Accepted for generation 4", got)
	}
	class.Spec.ParametersRef = new(gatewayv1.ParametersReference)
	if got := ClassStatus(class, time.Now()).Conditions; got[0].Status != metav1.ConditionFalse || got[0].Reason != "InvalidParameters" {
		t.Errorf("with parametersRef conditions are %v, want Accepted false", got)
	}
}

// What other controllers wrote into a route's status stays; what is of a parent
// that it has no more goes, and a condition that is over.
func TestRouteStatusKeepsOthers(t *testing.T) {
	theirs := gatewayv1.RouteParentStatus{
		ParentRef: gatewayv1.ParentReference{Name: "web"}, ControllerName: "example.com/other",
		Conditions: []metav1.Condition{{Type: "Accepted", Status: metav1.ConditionFalse, Reason: "No"}},
	}
	ours := func(name string) gatewayv1.RouteParentStatus {
		return gatewayv1.RouteParentStatus{
			ParentRef: gatewayv1.ParentReference{Name: gatewayv1.ObjectName(name)}, ControllerName: ControllerName,
			Conditions: []metav1.Condition{{Type: string(gatewayv1.RouteConditionPartiallyInvalid), Status: metav1.ConditionTrue, Reason: "UnsupportedValue"}},
		}
	}
	route := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Name: "r", Namespace: "shop"}}
	route.Spec.ParentRefs = []gatewayv1.ParentReference{{Name: "web"}, {Name: "not-ours"}}
	route.Status.Parents = []gatewayv1.RouteParentStatus{ours("gone"), theirs, ours("web")}
	g := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"}}
	g.Spec.Listeners = []gatewayv1.Listener{{Name: "http", Port: 80, Protocol: gatewayv1.HTTPProtocolType}}
	world, _ := mesh.New(nil, mesh.Options{})

	got := RouteStatus(route, map[types.NamespacedName]*gatewayv1.Gateway{nameOf(g): g}, Known{World: world, Now: time.Now()})
	if len(got.Parents) != 2 {
		t.Fatalf("parents are %v, want theirs and ours", got.Parents)
	}
	if diff := cmp.Diff(theirs, got.Parents[0]); diff != "" {
		t.Errorf("another controller's entry was changed (-want +got):\n%s", diff)
	}
	var kinds []string
	for _, c := range got.Parents[1].Conditions {
		kinds = append(kinds, c.Type+"="+string(c.Status))
	}
	if diff := cmp.Diff([]string{"Accepted=True", "ResolvedRefs=True"}, kinds); diff != "" {
		t.Errorf("conditions of our entry (-want +got):\n%s", diff)
	}
}

// A merge patch leaves what it does not mention: what is gone has to be null.
func TestStatusPatch(t *testing.T) {
	g := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7"}}
	old := gatewayv1.GatewayStatus{Addresses: []gatewayv1.GatewayStatusAddress{{Value: "192.0.2.7"}}}
	patch, err := statusPatch(g, old, gatewayv1.GatewayStatus{Conditions: []metav1.Condition{{Type: "Accepted"}}})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Metadata map[string]any
		Status   map[string]any
	}
	if err := json.Unmarshal(patch, &got); err != nil {
		t.Fatal(err)
	}
	addresses, mentioned := got.Status["addresses"]
	if got.Metadata["resourceVersion"] != "7" || !mentioned || addresses != nil || got.Status["conditions"] == nil {
		t.Errorf("patch is %s", patch)
	}
}

// No two ports lead to the same place, none that a process without root cannot
// have, none of the agent's; and those that can stay where they are.
func FuzzTargetPorts(f *testing.F) {
	f.Add(uint16(80), uint16(20080), uint16(443), uint16(15020))
	f.Add(uint16(15020), uint16(22020), uint16(80), uint16(8080))
	f.Fuzz(func(t *testing.T, a, b, c, d uint16) {
		var ports []int32
		for p := range map[uint16]bool{a: true, b: true, c: true, d: true} {
			if p > 0 {
				ports = append(ports, int32(p))
			}
		}
		seen := map[int32]int32{}
		for p, target := range targetPorts(ports) {
			if other, taken := seen[target]; taken {
				t.Errorf("ports %d and %d both lead to %d", p, other, target)
			}
			seen[target] = p
			if target < 1024 || target > 65535 || target >= 15000 && target < 15100 {
				t.Errorf("port %d leads to %d", p, target)
			}
			if p >= 1024 && (p < 15000 || p >= 15100) && target != p {
				t.Errorf("port %d leads to %d without need", p, target)
			}
		}
		if len(seen) != len(ports) {
			t.Errorf("%d of %d ports lead somewhere", len(seen), len(ports))
		}
	})
}
