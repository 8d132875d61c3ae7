package resource

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The kinds of Kubernetes itself have no published schema to embed. What is
// filled in and checked here is what its API server would, as far as Chandler
// reads it.

// completeNamespace sets the label that every namespace has.
func completeNamespace(o Object) {
	labels := maps.Clone(o.GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	labels[corev1.LabelMetadataName] = o.GetName()
	o.SetLabels(labels)
}

func checkPod(o Object) field.ErrorList {
	status := o.(*corev1.Pod).Status
	var errs field.ErrorList
	if status.PodIP != "" {
		errs = validation.IsValidIP(field.NewPath("status", "podIP"), status.PodIP)
	}
	for i, ip := range status.PodIPs {
		errs = append(errs, validation.IsValidIP(field.NewPath("status", "podIPs").Index(i).Child("ip"), ip.IP)...)
	}
	return errs
}

// checkSecretData reads data itself: decoding it into the Go type would put
// what is secret into the error.
func checkSecretData(tree map[string]any) []finding {
	var findings []finding
	for _, name := range []string{"data", "stringData"} {
		values, isMap := tree[name].(map[string]any)
		if tree[name] != nil && !isMap {
			findings = append(findings, finding{field: name, message: "must be a mapping"})
		}
		for _, key := range slices.Sorted(maps.Keys(values)) {
			if message := secretValue(name, values[key]); message != "" {
				findings = append(findings, finding{field: name + "." + key, message: message})
			}
		}
	}
	return findings
}

// secretValue tells what is wrong with a value in data or stringData, without showing it.
func secretValue(name string, value any) string {
	text, isText := value.(string)
	if value == nil {
		return ""
	}
	if !isText {
		return "must be a string; put it in quotes"
	}
	if name == "data" {
		if _, err := base64.StdEncoding.DecodeString(text); err != nil {
			return "must be base64; use stringData for plain text"
		}
	}
	return ""
}

// completeSecret moves stringData, which is only for writing, to data.
func completeSecret(o Object) {
	s := o.(*corev1.Secret)
	if len(s.StringData) > 0 && s.Data == nil {
		s.Data = map[string][]byte{}
	}
	for key, value := range s.StringData {
		s.Data[key] = []byte(value)
	}
	s.StringData = nil
	if s.Type == "" {
		s.Type = corev1.SecretTypeOpaque
	}
}

func checkSecret(o Object) field.ErrorList {
	s := o.(*corev1.Secret)
	var errs field.ErrorList
	for _, key := range slices.Sorted(maps.Keys(s.Data)) {
		for _, message := range validation.IsConfigMapKey(key) {
			errs = append(errs, field.Invalid(field.NewPath("data").Key(key), key, message))
		}
	}
	for _, key := range secretKeys(s.Type) {
		if _, ok := s.Data[key]; !ok {
			errs = append(errs, field.Required(field.NewPath("data").Key(key), fmt.Sprintf("a secret of type %s has it", s.Type)))
		}
	}
	return errs
}

// secretKeys are those that a secret of a type must have.
func secretKeys(t corev1.SecretType) []string {
	switch t {
	case corev1.SecretTypeTLS:
		return []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey}
	case corev1.SecretTypeDockerConfigJson:
		return []string{corev1.DockerConfigJsonKey}
	case corev1.SecretTypeDockercfg:
		return []string{corev1.DockerConfigKey}
	}
	return nil
}

func completeService(o Object) {
	spec := &o.(*corev1.Service).Spec
	if spec.Type == "" {
		spec.Type = corev1.ServiceTypeClusterIP
	}
	for i := range spec.Ports {
		port := &spec.Ports[i]
		if port.Protocol == "" {
			port.Protocol = corev1.ProtocolTCP
		}
		if port.TargetPort == (intstr.IntOrString{}) {
			port.TargetPort = intstr.FromInt32(port.Port)
		}
	}
}

func checkService(o Object) field.ErrorList {
	spec := &o.(*corev1.Service).Spec
	var errs field.ErrorList
	types := []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName}
	if !slices.Contains(types, spec.Type) {
		errs = append(errs, field.NotSupported(field.NewPath("spec", "type"), spec.Type, types))
	}
	if spec.Type == corev1.ServiceTypeExternalName && spec.ExternalName == "" {
		errs = append(errs, field.Required(field.NewPath("spec", "externalName"), ""))
	}
	headless := spec.ClusterIP == corev1.ClusterIPNone
	if len(spec.Ports) == 0 && !headless && spec.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(field.NewPath("spec", "ports"), ""))
	}
	if spec.ClusterIP != "" && !headless {
		errs = append(errs, validation.IsValidIP(field.NewPath("spec", "clusterIP"), spec.ClusterIP)...)
	}
	return append(errs, checkServicePorts(field.NewPath("spec", "ports"), spec.Ports)...)
}

func checkServicePorts(path *field.Path, ports []corev1.ServicePort) field.ErrorList {
	var errs field.ErrorList
	names := map[string]bool{}
	for i, port := range ports {
		at := path.Index(i)
		switch {
		case port.Name == "" && len(ports) > 1:
			errs = append(errs, field.Required(at.Child("name"), ""))
		case names[port.Name]:
			errs = append(errs, field.Duplicate(at.Child("name"), port.Name))
		case port.Name != "":
			errs = append(errs, invalid(at.Child("name"), port.Name, validation.IsDNS1123Label(port.Name))...)
		}
		names[port.Name] = true
		errs = append(errs, invalid(at.Child("port"), port.Port, validation.IsValidPortNum(int(port.Port)))...)
		if port.TargetPort.Type == intstr.Int {
			errs = append(errs, invalid(at.Child("targetPort"), port.TargetPort.IntVal, validation.IsValidPortNum(port.TargetPort.IntValue()))...)
		} else {
			errs = append(errs, invalid(at.Child("targetPort"), port.TargetPort.StrVal, validation.IsValidPortName(port.TargetPort.StrVal))...)
		}
		errs = append(errs, checkProtocol(at.Child("protocol"), port.Protocol)...)
	}
	return errs
}

func checkProtocol(path *field.Path, p corev1.Protocol) field.ErrorList {
	protocols := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	if !slices.Contains(protocols, p) {
		return field.ErrorList{field.NotSupported(path, p, protocols)}
	}
	return nil
}

func invalid(path *field.Path, value any, messages []string) field.ErrorList {
	var errs field.ErrorList
	for _, message := range messages {
		errs = append(errs, field.Invalid(path, value, message))
	}
	return errs
}

func completeEndpointSlice(o Object) {
	slice := o.(*discoveryv1.EndpointSlice)
	for i := range slice.Ports {
		port := &slice.Ports[i]
		if port.Name == nil {
			port.Name = new("")
		}
		if port.Protocol == nil {
			port.Protocol = new(corev1.ProtocolTCP)
		}
	}
}

func checkEndpointSlice(o Object) field.ErrorList {
	slice := o.(*discoveryv1.EndpointSlice)
	var errs field.ErrorList
	types := []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN}
	switch {
	case slice.AddressType == "":
		errs = append(errs, field.Required(field.NewPath("addressType"), ""))
	case !slices.Contains(types, slice.AddressType):
		errs = append(errs, field.NotSupported(field.NewPath("addressType"), slice.AddressType, types))
	}
	for i, port := range slice.Ports {
		at := field.NewPath("ports").Index(i)
		if port.Port != nil {
			errs = append(errs, invalid(at.Child("port"), *port.Port, validation.IsValidPortNum(int(*port.Port)))...)
		}
		errs = append(errs, checkProtocol(at.Child("protocol"), *port.Protocol)...)
	}
	for i, endpoint := range slice.Endpoints {
		at := field.NewPath("endpoints").Index(i).Child("addresses")
		if len(endpoint.Addresses) == 0 {
			errs = append(errs, field.Required(at, "must contain at least 1 address"))
		}
		for j, address := range endpoint.Addresses {
			errs = append(errs, checkAddress(at.Index(j), slice.AddressType, address)...)
		}
	}
	return errs
}

func checkAddress(path *field.Path, t discoveryv1.AddressType, address string) field.ErrorList {
	if t == discoveryv1.AddressTypeFQDN {
		return validation.IsFullyQualifiedDomainName(path, address)
	}
	ip, err := netip.ParseAddr(address)
	switch {
	case t == discoveryv1.AddressTypeIPv4 && (err != nil || !ip.Is4()):
		return field.ErrorList{field.Invalid(path, address, "must be an IPv4 address")}
	case t == discoveryv1.AddressTypeIPv6 && (err != nil || !ip.Is6()):
		return field.ErrorList{field.Invalid(path, address, "must be an IPv6 address")}
	}
	return nil
}
