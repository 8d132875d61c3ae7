package ecds

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/chandler-proxy/chandler/internal/module"
)

// TestReport: what is told is read, also that none runs; what makes no sense is not.
func TestReport(t *testing.T) {
	want := map[string]module.Digest{"a": {1}, "none": {}}
	n := Report(want)
	told := n.GetMetadata().GetFields()[reportKey].GetStructValue().GetFields()
	told["no digest"] = structpb.NewStringValue("sha256:12")
	told["no text"] = structpb.NewNumberValue(1)
	if diff := cmp.Diff(want, Reported(n)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
