package nft

// Numbers of the kernel's include/uapi/linux/netfilter/nf_tables.h and
// nfnetlink.h, under their names there without the prefix. They are here, and not
// taken from golang.org/x/sys/unix, so that the packages that make transactions
// build on every system.
const (
	subsystem  = 10 // NFNL_SUBSYS_NFTABLES
	batchBegin = 0x10
	batchEnd   = 0x11
	group      = 7 // NFNLGRP_NFTABLES

	msgNewTable   = 0
	msgGetTable   = 1
	msgDelTable   = 2
	msgNewChain   = 3
	msgGetChain   = 4
	msgDelChain   = 5
	msgNewRule    = 6
	msgGetRule    = 7
	msgDelRule    = 8
	msgNewSet     = 9
	msgGetSet     = 10
	msgDelSet     = 11
	msgNewSetElem = 12
	msgGetSetElem = 13
	msgDelSetElem = 14
	msgNewGen     = 15
	msgGetGen     = 16
)

// Attributes of the objects.
const (
	tableName  = 1
	tableFlags = 2
	tableOwner = 2 // NFT_TABLE_F_OWNER

	chainTable   = 1
	chainName    = 3
	chainHook    = 4
	chainType    = 7
	hookNum      = 1
	hookPriority = 2

	ruleTable       = 1
	ruleChain       = 2
	ruleExpressions = 4
	ruleUserdata    = 7

	setTable         = 1
	setName          = 2
	setFlags         = 3
	setKeyType       = 4
	setKeyLen        = 5
	setDataType      = 6
	setDataLen       = 7
	setDesc          = 9
	setID            = 10
	setTimeout       = 11
	setUserdata      = 13
	setExpr          = 17
	setDescConcat    = 2
	setDescSize      = 1
	setFieldLen      = 1
	setFlagMap       = 0x8
	setFlagExpr      = 0x100
	setFlagAnonymous = 0x1
	setFlagTime      = 0x10
	setFlagEval      = 0x20
	setFlagConcat    = 0x80
	setVerdicts      = 0xffffff00 // NFT_DATA_VERDICT

	elemListTable    = 1
	elemListSet      = 2
	elemListElements = 3
	elemKey          = 1
	elemData         = 2
	elemUserdata     = 6
	elemExpr         = 7

	listElem     = 1
	exprName     = 1
	exprData     = 2
	dataValue    = 1
	dataVerdict  = 2
	verdictCode  = 1
	verdictChain = 2

	counterBytes   = 1
	counterPackets = 2
	genID          = 1
)
