package tables

// recorder is put beside the package's own files: it keeps what each proxier was
// told.
const recorder = `package nftables

import (
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
)

type recorded struct {
	services map[string]*v1.Service
	slices   map[string]*discovery.EndpointSlice
}

var records = map[*Proxier]*recorded{}

func recordOf(p *Proxier) *recorded {
	if records[p] == nil {
		records[p] = &recorded{map[string]*v1.Service{}, map[string]*discovery.EndpointSlice{}}
	}
	return records[p]
}

func recordService(p *Proxier, old, service *v1.Service) {
	if old != nil {
		delete(recordOf(p).services, old.Namespace+"/"+old.Name)
	}
	if service != nil {
		recordOf(p).services[service.Namespace+"/"+service.Name] = service.DeepCopy()
	}
}

func recordSlice(p *Proxier, slice *discovery.EndpointSlice, deleted bool) {
	delete(recordOf(p).slices, slice.Namespace+"/"+slice.Name)
	if !deleted {
		recordOf(p).slices[slice.Namespace+"/"+slice.Name] = slice.DeepCopy()
	}
}
`

// tableRecorder is put beside the package's tests: it writes down a table. One that
// is of no proxier, but of rules written out, is left out.
const tableRecorder = `package nftables

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"sigs.k8s.io/knftables"
)

type recordPacket struct {
	Name, Source, Protocol, Dest string
	Port                         int
	Output                       string
	Masquerade                   bool
}

type recordedTable struct {
	Test, Line                         string
	IPv6, MasqueradeAll, LocalDetector bool
	NodePortAddresses, ServiceCIDRs    []string
	Services                           []*v1.Service
	Slices                             []*discovery.EndpointSlice
	Packets                            []recordPacket
}

func recordTable(t *testing.T, line string, nft *knftables.Fake, packets []packetFlowTest) {
	for p, r := range records {
		if p.nftables != nft {
			continue
		}
		out := recordedTable{Test: t.Name(), Line: line, IPv6: p.ipFamily == v1.IPv6Protocol, MasqueradeAll: p.masqueradeAll,
			LocalDetector: p.localDetector.IsImplemented(), ServiceCIDRs: strings.Split(p.serviceCIDRs, ","),
			NodePortAddresses: strings.Fields(strings.Trim(p.nodePortAddresses.String(), "[]"))}
		for _, s := range r.services {
			out.Services = append(out.Services, s)
		}
		for _, s := range r.slices {
			out.Slices = append(out.Slices, s)
		}
		for _, c := range packets {
			out.Packets = append(out.Packets, recordPacket{c.name, c.sourceIP, string(c.protocol), c.destIP, c.destPort, c.output, c.masq})
		}
		f, err := os.OpenFile(os.Getenv("RECORD_TABLES"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := json.NewEncoder(f).Encode(out); err != nil {
			t.Fatal(err)
		}
	}
}
`
